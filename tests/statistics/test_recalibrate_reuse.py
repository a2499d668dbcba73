"""recalibrate_ layer after layer where layers are used several times, or not alike by all batches.

The oracle is eval mode after it: every layer's running statistics are those of what it is given then.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadynorm as sn

from ..support.twins import agree, normal
from .test_recalibrate_sequential import Reused, randomised

CALL = Callable[[nn.Module, Any], object]


def expect_eval_mode_s(model: nn.Module, data: list[Any], call: CALL) -> None:
    """Each layer's statistics are the mean and variance of all that eval mode gives it."""
    inputs: dict[nn.Module, list[Tensor]] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: inputs.setdefault(layer, []).append(args[0]))
        for layer in model.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    model.eval()
    with torch.no_grad():
        for batch in data:
            call(model, batch)
    for hook in hooks:
        hook.remove()
    assert len(inputs) == len(hooks)
    for layer, seen in inputs.items():
        values = torch.cat([x.movedim(1, 0).flatten(1) for x in seen], 1)
        agree(layer.running_mean, values.mean(1), rtol=1e-8, atol=1e-8)
        if isinstance(layer, sn.WhiteningBatchNorm):
            groups = values.split(layer.group_size)
            agree(layer.running_covariance, torch.stack([g.cov() for g in groups]), rtol=1e-8, atol=1e-8)
        else:
            agree(layer.running_var, values.var(1), rtol=1e-8, atol=1e-8)


def run(model: nn.Module, batch: Any) -> None:
    model(batch)


def both(model: nn.Module, pair: tuple[Tensor, Tensor]) -> None:
    model(pair[0])
    model(pair[1])


def siamese() -> nn.Sequential:
    return randomised(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), sn.BatchNorm1d(4)))


class Recursive(nn.Module):
    """A layer behind itself, with another in between."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = sn.BatchNorm1d(3)
        self.mid = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(4 * self.mid(torch.tanh(self.bn(x))) + 1)


class Cell(nn.Module):
    """As many steps of one cell as the batch is long, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.BatchNorm1d(3)  # the model's order is not that of execution
        self.cell = nn.Sequential(nn.Linear(3, 3), sn.BatchNorm1d(3), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        state = x[:, 0]
        for step in range(x.shape[1]):
            state = self.cell(state + x[:, step])
        return self.head(state)


class Detour(nn.Module):
    """Wide batches go through one more layer; it is in front of one that others reach before it is known."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.detour, self.last = (randomised(nn.BatchNorm1d(3)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.first(x))
        if len(x) > 8:
            x = torch.sigmoid(5 * self.detour(x))
        return self.last(x)


def test_twins_share_their_layers() -> None:
    """Two crops of other distributions: deeper layers are behind the statistics of both."""
    a, b = normal(40, 3), normal(40, 3, seed=1) * 5 - 9
    model = siamese()
    data = list(zip(a.split(10), b.split(10), strict=True))
    passes = [0]

    class Data:
        def __iter__(self) -> Iterator[Any]:
            passes[0] += 1
            return iter(data)

    found = sn.recalibrate_(model, Data(), call=both, sequential=True)
    expect_eval_mode_s(model, data, both)
    assert passes == [5]  # one, and each layer twice: the second time nothing moves
    assert found["1"].count.tolist() == [80] * 4
    assert model[1].num_batches_tracked == 8


@pytest.mark.parametrize("build", [Recursive, Reused], ids=lambda build: build.__name__)
def test_a_layer_behind_itself(build: Any) -> None:
    x = normal(30, 3) if build is Recursive else normal(20, 2, 5, 5)
    model = randomised(build())
    found = sn.recalibrate_(model, x.split(8), sequential=True)
    expect_eval_mode_s(model, list(x.split(8)), run)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    again = sn.recalibrate_(model, x.split(8), sequential=True)
    agree(dict(model.state_dict()), before, rtol=1e-8, atol=1e-8)
    assert list(found) == list(again)


SPLITS = [lambda parts: parts, lambda parts: parts[::-1], lambda parts: [p for x in parts for p in x.split(7)]]


@pytest.mark.parametrize("split", SPLITS, ids=["short first", "long first", "split"])
@pytest.mark.parametrize("build", [Cell, Detour], ids=lambda build: build.__name__)
def test_batches_that_go_other_ways(build: Any, split: Any) -> None:
    short, long = normal(14, 1, 3), normal(21, 3, 3, seed=1) * 2
    parts = [short, long] if build is Cell else [normal(7, 3), normal(21, 3, seed=1) * 2]
    data = split(parts) if build is Cell else parts[::-1] if split is SPLITS[1] else parts
    model = randomised(build())
    sn.recalibrate_(model, data, sequential=True)
    expect_eval_mode_s(model, data, run)
    if build is Cell:
        other = randomised(build())
        sn.recalibrate_(other, parts, sequential=True)
        for name, value in other.state_dict().items():
            if "num_batches" not in name:
                agree(model.state_dict()[name], value, rtol=1e-8, atol=1e-8)


def test_adaptation_settles_on_the_mix() -> None:
    """The fixed point is of what is written, the mix with the old statistics."""
    model, x = randomised(Recursive()), normal(30, 3)
    old = copy.deepcopy(model.bn)
    sn.adapt_(model, [x], weight=0.5, sequential=True)
    seen: list[Tensor] = []
    model.bn.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    model.eval()(x)
    values = torch.cat(seen)
    agree(model.bn.running_mean, 0.5 * values.mean(0) + 0.5 * old.running_mean, rtol=1e-8)
    agree(model.bn.running_var, 0.5 * values.var(0) + 0.5 * old.running_var, rtol=1e-8)


@pytest.mark.parametrize("build", [siamese, Recursive], ids=lambda build: build.__name__)
def test_what_the_layers_held_before_does_not_matter(build: Any) -> None:
    """Also where it is nan, and the first batch too small to go by."""
    models = randomised(build()), randomised(build())
    for layer in models[1].modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.get_buffer("running_var").fill_(torch.nan)
    data = normal(30, 3).split([1, 14, 15])
    for model in models:
        sn.recalibrate_(model, data, sequential=True)
    agree(dict(models[1].state_dict()), dict(models[0].state_dict()), rtol=1e-8, atol=1e-8)


def test_a_constant_channel_does_not_hide_the_others() -> None:
    """Its standard deviation is next to nothing, so its mean may seem to go far by rounding alone."""
    model, x = randomised(Recursive()), normal(30, 3)
    x[:, 0] = 1000
    sn.recalibrate_(model, x.split(8), sequential=True)
    expect_eval_mode_s(model, list(x.split(8)), run)


def test_float32_settles() -> None:
    torch.manual_seed(0)
    model = Recursive()
    x = normal(300, 3, dtype=torch.float32) + 1000
    found = sn.recalibrate_(model, x.split(64), sequential=True)
    wide = copy.deepcopy(model).double()
    agree(sn.recalibrate_(wide, x.double().split(64), sequential=True)["bn"].var, found["bn"].var, rtol=1e-3)


def test_what_never_settles_is_refused() -> None:
    """Data that are others in each pass, for a layer that is behind itself; a chain takes them as they are."""
    left = [0]

    class Other:
        def __iter__(self) -> Iterator[Tensor]:
            left[0] += 1
            yield normal(8, 3, seed=left[0])

    model = randomised(Recursive())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"recalibrate_: expected statistics that settle, got '.*standard dev") as info:
        sn.recalibrate_(model, Other(), sequential=True)
    assert isinstance(info.value, sn.SteadynormError)
    agree(dict(model.state_dict()), before, rtol=0, atol=0)
    chain = siamese()
    sn.recalibrate_(chain, Other(), sequential=True)
