"""weigh_examples: in eval mode each example's own moments count, by the formula."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steadynorm as sn

from ..support.refusals import expect_unchanged
from ..support.twins import agree, normal, twins

WEIGHTS = pytest.mark.parametrize("weight", [0.0, 0.05, 0.6, 1.0])


def by_hand(layer: Any, x: Tensor, weight: float) -> Tensor:
    """Example by example, from E[x] and E[x²] of the mixture, in float64."""
    outputs = []
    for example in x:
        values = example.reshape(len(example), -1)
        mean = weight * values.mean(1) + (1 - weight) * layer.running_mean
        square = weight * values.square().mean(1)
        square = square + (1 - weight) * (layer.running_var + layer.running_mean.square())
        y = (values - mean[:, None]) / (square - mean.square() + layer.eps).sqrt()[:, None]
        outputs.append((y * layer.weight[:, None] + layer.bias[:, None]).reshape(example.shape))
    return torch.stack(outputs)


@WEIGHTS
@pytest.mark.parametrize("kind", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
def test_by_the_formula(kind: str, weight: float) -> None:
    shape = (5, 3, *{"BatchNorm1d": (7,), "BatchNorm2d": (4, 5), "BatchNorm3d": (2, 3, 2)}[kind])
    x = normal(*shape)
    for layer in twins(kind):
        with sn.weigh_examples(layer.eval(), weight):
            agree(layer(x), by_hand(layer, x, weight), rtol=1e-10, atol=1e-11)
            agree(layer(x[:1]), layer(x)[:1])  # whatever else is in the batch


@WEIGHTS
def test_without_positions(weight: float) -> None:
    """(N, C): an example is its own mean, and has no variance."""
    x = normal(5, 3)
    for layer in twins("BatchNorm1d"):
        with sn.weigh_examples(layer.eval(), weight):
            agree(layer(x), by_hand(layer, x, weight), rtol=1e-10, atol=1e-11)


def test_activation_and_residual() -> None:
    layer: Any = sn.BatchNorm2d(3, activation="silu", dtype=torch.float64).eval()
    layer.load_state_dict(twins()[0].state_dict())
    x, residual = normal(4, 3, 5, 6), normal(4, 3, 5, 6, seed=1)
    with sn.weigh_examples(layer, 0.3):
        agree(layer(x, residual=residual), F.silu(by_hand(layer, x, 0.3) + residual), rtol=1e-10)


def test_only_real_elements_count() -> None:
    layer: Any = twins("BatchNorm1d")[1].eval()
    x, lengths = normal(4, 3, 6), torch.tensor([6, 2, 0, 1])
    x[1, :, 2:] = torch.nan
    with sn.weigh_examples(layer, 0.4):
        y = layer(input=x, mask=lengths)
    for number, length in enumerate(lengths.tolist()):
        if length > 0:
            part = x[number : number + 1, :, :length]
            agree(y[number : number + 1, :, :length], by_hand(layer, part, 0.4), rtol=1e-10)
        assert (y[number, :, length:] == 0).all()


def test_gradients_go_through_the_example() -> None:
    layer: Any = twins()[0].eval()
    x, dy = normal(3, 3, 4, 4).requires_grad_(), normal(3, 3, 4, 4, seed=2)
    with sn.weigh_examples(layer, 0.3):
        ours = torch.autograd.grad(layer(x), (x, layer.weight), dy)
    agree(ours, torch.autograd.grad(by_hand(layer, x, 0.3), (x, layer.weight), dy), rtol=1e-9, atol=1e-11)


def test_layers_in_train_mode_and_without_statistics_are_as_always() -> None:
    model: Any = nn.Sequential(nn.BatchNorm1d(3), sn.BatchNorm1d(3, track_running_stats=False)).double()
    expected, x = copy.deepcopy(model), normal(6, 3, 4)
    with sn.weigh_examples(model, 0.5):
        agree(model(x), expected(x))
    model.eval()
    expected.eval()
    with sn.weigh_examples(model[1], 0.5):
        agree(model(x), expected(x))


def test_nothing_is_left_behind() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), sn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4)).double().eval()
    x = normal(2, 3, 6, 6)
    with torch.no_grad():
        before = model(x)

        def call() -> None:
            with pytest.raises(ZeroDivisionError), sn.weigh_examples(model, 0.2):
                assert not torch.allclose(model(x), before)
                raise ZeroDivisionError

        expect_unchanged(model, call)
        assert torch.equal(model(x), before)
    assert not any(module._forward_pre_hooks or module._forward_pre_hooks_with_kwargs for module in model.modules())


def test_float32_far_from_0() -> None:
    """The mapped input is as precise as the input is."""
    layer = nn.BatchNorm2d(2).eval()
    layer.running_mean.fill_(1000)  # type: ignore[union-attr]
    layer.running_var.fill_(0.01)  # type: ignore[union-attr]
    wide: Any = copy.deepcopy(layer).double()
    x = normal(3, 2, 8, 8, dtype=torch.float32) / 30 + 1000
    with sn.weigh_examples(layer, 0.1):
        agree(layer(x).double(), by_hand(wide, x.double(), 0.1), rtol=0, atol=1000 * 2**-23 / 0.1)


@pytest.mark.parametrize("weight", [-0.1, 1.5, float("nan")])
def test_weights_out_of_range(weight: float) -> None:
    with pytest.raises(ValueError, match=r"weigh_examples: expected a weight in \[0, 1\], got") as info:
        with sn.weigh_examples(nn.BatchNorm1d(3), weight):
            raise AssertionError
    assert isinstance(info.value, sn.SteadynormError)


def test_models_it_cannot_weigh() -> None:
    with pytest.raises(ValueError, match="weigh_examples: expected a model with batch normalization"):
        with sn.weigh_examples(nn.Linear(2, 2), 0.1):
            raise AssertionError
    with pytest.raises(ValueError, match="channel by channel, got WhiteningBatchNorm at '1'"):
        with sn.weigh_examples(nn.Sequential(nn.BatchNorm1d(4), sn.WhiteningBatchNorm(4)), 0.1):
            raise AssertionError


def test_inputs_are_refused_by_the_layer() -> None:
    layer = sn.BatchNorm2d(3).eval()
    with sn.weigh_examples(layer, 0.1), pytest.raises(ValueError, match="expected a 4-D input"):
        layer(torch.ones(3))


def test_compiled_models_are_weighed_too() -> None:
    """Code that was compiled before would not see the hooks."""
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), sn.BatchNorm2d(4), nn.BatchNorm2d(4)).double().eval()
    x = normal(2, 3, 6, 6)
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        before = compiled(x)
        with sn.weigh_examples(model, 0.3):
            expected = model(x)
            agree(compiled(x), expected)
        assert not torch.allclose(expected, before)
        agree(compiled(x), before)


def test_measuring_inside_is_refused() -> None:
    """Which would measure inputs that the weighing has changed."""
    model, x = nn.Sequential(nn.BatchNorm1d(3)).double().eval(), normal(6, 3, 4)
    with sn.weigh_examples(model, 0.3):
        for verb in (sn.recalibrate_, sn.adapt_):
            with pytest.raises(ValueError, match=rf"{verb.__name__}: .* got weigh_examples around '0'. Leave") as info:
                verb(model, [x])
            assert isinstance(info.value, sn.SteadynormError)
    sn.recalibrate_(model, [x])


def test_an_input_by_another_name_is_refused() -> None:
    class Renamed(nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x)

    model = nn.ModuleDict({"norm": Renamed(3)}).double().eval()
    with sn.weigh_examples(model, 0.3):
        agree(model["norm"](normal(4, 3)), model["norm"](normal(4, 3)))
        with pytest.raises(ValueError, match=r"expected the input of 'norm' first, or as input=, got x\. Name") as info:
            model["norm"](x=normal(4, 3))
    assert isinstance(info.value, sn.SteadynormError)
