"""recalibrate_ layer after layer: exactly what eval mode sees, however the data are batched."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import steadynorm as sn

from ..support import models
from ..support.twins import agree, normal


def randomised(model: nn.Module) -> Any:
    """In float64, every parameter and running statistic drawn: nothing is right by chance."""
    generator = torch.Generator().manual_seed(1)
    model = model.double()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def normalized(x: Tensor, layer: Any) -> tuple[Tensor, Tensor, Tensor]:
    """A layer in eval mode on its own population, by hand: output, mean and unbiased variance."""
    mean, var = x.mean(0), x.var(0)
    return (x - mean) / (var + layer.eps).sqrt() * layer.weight + layer.bias, mean, var


def test_against_a_network_by_hand() -> None:
    model = randomised(
        nn.Sequential(
            nn.Linear(4, 5),
            nn.BatchNorm1d(5),
            nn.Tanh(),
            nn.Dropout(0.9),
            nn.Linear(5, 3),
            sn.BatchNorm1d(3),
            nn.Sequential(nn.Sigmoid(), sn.SyncBatchNorm(3)),
        )
    )
    x = normal(37, 4) / 5
    with torch.no_grad():
        y, mean1, var1 = normalized(x @ model[0].weight.T + model[0].bias, model[1])
        y, mean2, var2 = normalized(torch.tanh(y) @ model[4].weight.T + model[4].bias, model[5])
        y, mean3, var3 = normalized(torch.sigmoid(y), model[6][1])
    found = sn.recalibrate_(model, x.split([20, 1, 16]), sequential=True)
    for layer, mean, var in ((model[1], mean1, var1), (model[5], mean2, var2), (model[6][1], mean3, var3)):
        agree((layer.running_mean, layer.running_var), (mean, var), rtol=1e-10, atol=1e-11)
        assert layer.num_batches_tracked == 3
    assert list(found) == ["1", "5", "6.1"]
    agree(model.eval()(x), y, rtol=1e-9, atol=1e-9)


class Reused(nn.Module):
    """Layers of all kinds, one of them called twice with another in between, and a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.BatchNorm2d(3)  # the model's order is not that of execution
        self.first = nn.Conv2d(2, 4, 3)
        self.shared = sn.BatchNorm2d(4, activation="relu")
        self.between = nn.Conv2d(4, 4, 1)
        self.white = sn.WhiteningBatchNorm(4, 2)
        self.out = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.first(x))
        return self.last(self.out(self.shared(self.between(x)) + self.white(x)))


@settings(max_examples=5)
@given(st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_any_split_of_the_data(sizes: list[int]) -> None:
    x = normal(30, 2, 4, 4)
    expected = randomised(Reused())
    model = copy.deepcopy(expected)
    sn.recalibrate_(expected, [x], sequential=True)
    sn.recalibrate_(model, x.split([*sizes, 30 - sum(sizes)] if sum(sizes) < 30 else 7), sequential=True)
    for name, value in expected.state_dict().items():
        if "num_batches" not in name:
            agree(model.state_dict()[name], value, rtol=1e-9, atol=1e-11)


def test_without_it_deeper_layers_depend_on_the_batches() -> None:
    """Why there is a choice."""
    x, found = normal(30, 2, 5, 5), []
    for size in (30, 3):
        model = randomised(Reused())
        sn.recalibrate_(model, x.split(size))
        found.append(model.last.running_var)
    assert ((found[0] / found[1] - 1).abs() > 1e-3).any()


def test_forwards_stop_at_the_layer_that_is_wanted() -> None:
    model = nn.Sequential(nn.Linear(2, 2), sn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    calls: dict[int, int] = dict.fromkeys((0, 2, 4), 0)

    def count(number: int) -> None:
        calls[number] += 1

    for number in calls:
        model[number].register_forward_pre_hook(lambda *_, number=number: count(number))
    sn.recalibrate_(model.double(), normal(6, 2).split(3), sequential=True)
    assert calls == {0: 6, 2: 4, 4: 2}  # one whole pass of two batches, one to each layer


NETWORKS = [models.resnet10t, pytest.param(models.resnet18, marks=pytest.mark.slow)]


@pytest.mark.parametrize("build", NETWORKS, ids=lambda build: build.__name__)
def test_a_network_is_normalized_on_its_data(build: Any) -> None:
    """In eval mode every layer's output has mean 0 and variance 1, less what n - 1 and eps take."""
    torch.manual_seed(0)
    model = build(nn.BatchNorm2d).train()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.ones_(layer.weight)  # which networks start at 0 before a sum
    x = torch.randn(12, 3, 32, 32) * 3 + 1
    found = sn.recalibrate_(model, [(x[:5], 0), (x[5:6], 0), (x[6:], 0)], sequential=True)
    outputs: dict[str, Tensor] = {}
    for name in found:
        model.get_submodule(name).register_forward_hook(lambda _, __, y, name=name: outputs.update({name: y.clone()}))
    with torch.no_grad():
        model.eval()(x)
    assert list(outputs) and set(outputs) == set(found)
    for name, y in outputs.items():
        shift, values = found[name], y.double().movedim(1, 0).flatten(1)
        expected = shift.var * (shift.count - 1) / shift.count / (shift.var + 1e-5)
        agree(values.mean(1), torch.zeros_like(expected), atol=1e-4)
        agree(values.var(1, correction=0), expected, rtol=1e-4)
