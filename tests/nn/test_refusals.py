"""What a layer refuses: as torch refuses it, with a better message, and nothing half-changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

import steadynorm as sn

from ..support.refusals import expect_unchanged, refused_by_both

BFLOAT, HALF, DOUBLE = torch.bfloat16, torch.float16, torch.float64


@dataclass(frozen=True)
class Refusal:
    """A layer of `torch.nn` and of `steadynorm.nn` alike, an input neither takes, and what ours says to it."""

    name: str
    message: str
    shape: tuple[int, ...] = (2, 3, 4, 4)
    layer: str = "BatchNorm2d"
    dtype: torch.dtype = torch.float32
    to: torch.dtype = torch.float32
    train: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    change: Callable[[torch.nn.Module], Any] = lambda layer: None

    def build(self, library: ModuleType) -> torch.nn.Module:
        layer = getattr(library, self.layer)(3, **self.settings).to(self.to).train(self.train)
        for name, tensor in layer.state_dict().items():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 2)
            else:
                assert name == "num_batches_tracked"
                tensor.fill_(7)
        self.change(layer)
        return layer

    def input(self) -> Tensor:
        return torch.ones(self.shape).to(self.dtype)


def drop_running_mean(layer: Any) -> None:
    layer.running_mean = None


TWO_D = r"BatchNorm2d\(num_features=3\)"
CHANNELS = (
    rf"{TWO_D}: expected {{}} with one value for each of the 4 channels .* \(2, 4, 5, 5\), got {{}} of shape \(3,\)"
)
DTYPE = rf"{TWO_D}: expected running_mean of the input's dtype torch.{{}} .*, got torch.{{}}\. Convert"
ONE_VALUE = r": expected more than 1 value per channel when training, got input of shape {}\. Use a larger batch, eval"
FLOATING = rf"{TWO_D}: expected a floating-point input, got torch.{{}} of shape \(2, 3, 4, 4\)\. Convert"
STATISTICS = rf"{TWO_D}: expected running_mean and running_var"

REFUSALS = [
    Refusal("2-D to 2d", rf"{TWO_D}: expected a 4-D input \(N, C, H, W\), got 2-D input of shape \(2, 3\)", (2, 3)),
    Refusal("3-D to 2d", rf"{TWO_D}: expected a 4-D input .* got 3-D input of shape \(3, 4, 4\)", (3, 4, 4)),
    Refusal("4-D to 3d", r"3d\(num_features=3\): expected a 5-D input \(N, C, D, H, W\), got 4-D", layer="BatchNorm3d"),
    Refusal("1-D to 1d", r"expected a 2-D input \(N, C\) or 3-D input \(N, C, L\), got 1-D", (3,), "BatchNorm1d"),
    Refusal("4-D to 1d", r"1d\(num_features=3\): expected a 2-D .* or 3-D .* got 4-D", layer="BatchNorm1d"),
    Refusal("channels", CHANNELS.format("running_mean", "running_mean"), (2, 4, 5, 5)),
    Refusal("channels, eval", CHANNELS.format("running_mean", "running_mean"), (2, 4, 5, 5), train=False),
    Refusal(
        "channels, no running statistics",
        CHANNELS.format("weight", "weight"),
        (2, 4, 5, 5),
        settings={"track_running_stats": False},
    ),
    Refusal("eps 0 in training", rf"{TWO_D}: expected eps > 0 in training, got 0\.", settings={"eps": 0.0}),
    Refusal(
        "eps < 0", rf"{TWO_D}: expected eps > 0 in training, got -1", change=lambda layer: setattr(layer, "eps", -1.0)
    ),
    Refusal(
        "eps < 0, eval",
        rf"{TWO_D}: expected eps >= 0, got -1",
        train=False,
        change=lambda layer: setattr(layer, "eps", -1.0),
    ),
    Refusal("integer", FLOATING.format("int64"), dtype=torch.int64),
    Refusal("integer, eval", FLOATING.format("uint8"), dtype=torch.uint8, train=False),
    Refusal("bool", FLOATING.format("bool"), dtype=torch.bool),
    Refusal("complex", FLOATING.format("complex64"), dtype=torch.complex64),
    Refusal("complex, eval", FLOATING.format("complex128"), dtype=torch.complex128, train=False),
    Refusal("one value", TWO_D + ONE_VALUE.format(r"\(1, 3, 1, 1\)"), (1, 3, 1, 1)),
    Refusal("one value, 1d", r"1d\(num_features=3\)" + ONE_VALUE.format(r"\(1, 3\)"), (1, 3), "BatchNorm1d"),
    Refusal("one value, 3d", ONE_VALUE.format(r"\(1, 3, 1, 1, 1\)"), (1, 3, 1, 1, 1), "BatchNorm3d"),
    Refusal(
        "one value, batch statistics in eval",
        TWO_D + ONE_VALUE.format(r"\(1, 3, 1, 1\)"),
        (1, 3, 1, 1),
        train=False,
        settings={"track_running_stats": False},
    ),
    Refusal("float64 in float32", DTYPE.format("float64", "float32"), dtype=DOUBLE),
    Refusal("float64 in float32, eval", DTYPE.format("float64", "float32"), dtype=DOUBLE, train=False),
    Refusal("float32 in float64", DTYPE.format("float32", "float64"), to=DOUBLE),
    Refusal("no running_mean, eval", STATISTICS, train=False, change=drop_running_mean),
    Refusal("no running_mean, train", STATISTICS, change=drop_running_mean),
]


@pytest.mark.parametrize("case", REFUSALS, ids=lambda case: case.name)
def test_refused_as_torch_refuses(case: Refusal) -> None:
    ours, theirs, x = case.build(sn.nn), case.build(torch.nn), case.input()
    expect_unchanged(ours, lambda: refused_by_both(lambda: theirs(x), lambda: ours(x), case.message))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_features": -1}, r"BatchNorm2d: expected num_features >= 0, got -1"),
        ({"num_features": -1, "affine": False}, r"BatchNorm2d: expected num_features >= 0, got -1"),
    ],
    ids=str,
)
def test_settings_refused_as_torch_refuses(settings: dict[str, Any], message: str) -> None:
    refused_by_both(lambda: torch.nn.BatchNorm2d(**settings), lambda: sn.BatchNorm2d(**settings), message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": -1e-5}, r"BatchNorm2d: expected eps >= 0, got -1e-05\. The usual value is 1e-5"),
        ({"eps": float("nan")}, r"BatchNorm2d: expected eps >= 0, got nan"),
        ({"momentum": 1.5}, r"BatchNorm2d: expected momentum in \[0, 1\], got 1\.5\. .* 0\.1 here is 0\.9 in Keras"),
        ({"momentum": -0.1}, r"BatchNorm2d: expected momentum in \[0, 1\], got -0\.1"),
        ({"momentum": float("nan")}, r"BatchNorm2d: expected momentum in \[0, 1\], got nan"),
        ({"activation": "elu"}, r"BatchNorm2d: expected activation None or one of relu, .*, tanh, got 'elu'\. Put any"),
        ({"activation": "ReLU"}, r"got 'ReLU'"),
    ],
    ids=str,
)
def test_settings_torch_takes_in_silence(settings: dict[str, Any], message: str) -> None:
    """torch builds a layer that will go wrong; ours does not."""
    known = {name: value for name, value in settings.items() if name != "activation"}
    torch.nn.BatchNorm2d(3, **known)
    with pytest.raises(ValueError, match=message) as info:
        sn.BatchNorm2d(3, **settings)
    assert isinstance(info.value, sn.SteadynormError)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("momentum", 2.0, r"BatchNorm2d\(num_features=3\): expected momentum in \[0, 1\], got 2\.0"),
        ("activation", "mish", r"BatchNorm2d\(num_features=3\): expected activation .* got 'mish'"),
        ("eps", float("nan"), r"BatchNorm2d\(num_features=3\): expected eps > 0 in training, got nan"),
    ],
)
def test_settings_changed_later(name: str, value: Any, message: str) -> None:
    layer = sn.BatchNorm2d(3)
    setattr(layer, name, value)

    def call() -> None:
        with pytest.raises(ValueError, match=message):
            layer(torch.randn(2, 3, 4, 4))

    expect_unchanged(layer, call)


RESIDUALS = {
    "shape": (torch.zeros(2, 3, 4, 5), r"of the input's shape \(2, 3, 4, 4\), .* got shape \(2, 3, 4, 5\), dtype"),
    "broadcast": (torch.zeros(1, 3, 1, 1), r"of the input's shape \(2, 3, 4, 4\), .* got shape \(1, 3, 1, 1\)"),
    "dtype": (
        torch.zeros(2, 3, 4, 4, dtype=BFLOAT),
        r"of the input's shape .* torch.float32 .* dtype torch.bfloat16",
    ),
    "device": (torch.zeros(2, 3, 4, 4, device="meta"), r"of the input's shape .* device cpu, got .* device meta"),
}


@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("residual", "message"), RESIDUALS.values(), ids=RESIDUALS)
def test_residual_that_does_not_fit(residual: Tensor, message: str, train: bool) -> None:
    layer = sn.BatchNorm2d(3).train(train)

    def call() -> None:
        with pytest.raises(RuntimeError, match=rf"{TWO_D}: expected a residual {message}") as info:
            layer(torch.randn(2, 3, 4, 4), residual=residual)
        assert isinstance(info.value, sn.SteadynormError)

    expect_unchanged(layer, call)


def test_empty_batch_of_other_channels() -> None:
    """torch lets it pass and counts it."""
    theirs, ours, x = torch.nn.BatchNorm2d(3), sn.BatchNorm2d(3), torch.zeros(0, 4, 5, 5)
    assert theirs(x).shape == x.shape

    def call() -> None:
        with pytest.raises(RuntimeError, match=r"each of the 4 channels .* \(0, 4, 5, 5\)"):
            ours(x)

    expect_unchanged(ours, call)


@pytest.mark.parametrize("library", [torch.nn, sn.nn], ids=["torch", "steadynorm"])
def test_one_value_is_enough_in_eval(library: ModuleType) -> None:
    layer = library.BatchNorm2d(3, eps=0.0).eval()
    layer.running_mean.copy_(torch.tensor([1.0, 2, 3]))
    layer.running_var.fill_(4)
    y = layer(torch.tensor([3.0, 4, 9]).reshape(1, 3, 1, 1))
    assert y.flatten().tolist() == [1, 1, 3]
