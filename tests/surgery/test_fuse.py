"""fuse_activations_: the same numbers with fewer layers at work, and what is not safe is kept with its reason."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import steadynorm as sn

from ..support.models import resnet18
from ..support.networks import Network, networks
from .test_convert import same_state, state


def agree_in_both_modes(model: nn.Module, twin: nn.Module, x: Tensor) -> None:
    """Output, gradients and state, to float64 rounding."""
    for training in (True, False):
        results = []
        for network in (model, twin):
            torch.manual_seed(0)
            y = network.train(training)(x.clone())
            grads = torch.autograd.grad(y.square().sum(), list(network.parameters()), allow_unused=True)
            results.append((y, [g for g in grads if g is not None]))
        torch.testing.assert_close(*results, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()), rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(networks())
def test_same_numbers(network: Network) -> None:
    """In train and eval mode, whatever is shared, nested, used twice or called as a function."""
    model, x = network
    model = nn.Sequential(nn.Flatten(0, 0), model)  # so that there is a parameter, and the norm may be the root's child
    if not list(model.parameters()):
        return
    twin, before = copy.deepcopy(model), state(model)
    changes = sn.fuse_activations_(model)
    same_state(model, before)
    assert sum("applied by" in change.reason for change in changes) == len(changes) // 2
    agree_in_both_modes(model, twin, x)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (nn.ReLU(inplace=True), "relu"),
        (nn.LeakyReLU(0.3), "leaky_relu"),
        (nn.SiLU(), "silu"),
        (nn.GELU(), "gelu"),
        (nn.Sigmoid(), "sigmoid"),
        (nn.Tanh(), "tanh"),
    ],
    ids=lambda value: str(value),
)
def test_every_activation(module: nn.Module, name: str) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), module).double()
    twin = copy.deepcopy(model)
    changes = sn.fuse_activations_(model)
    assert [str(change) for change in changes] == [
        "1: torch.nn.BatchNorm1d → steadynorm.BatchNorm1d (applies 2)",
        f"2: torch.nn.{type(twin[2]).__name__} → torch.nn.Identity (applied by 1)",
    ]
    assert model[1].activation == name  # type: ignore[union-attr]
    agree_in_both_modes(model, twin, torch.randn(5, 3, dtype=torch.float64))


class Unsafe(nn.Module):
    """One of each."""

    def __getattr__(self, name: str) -> Any:
        return super().__getattr__(name)

    def __init__(self) -> None:
        super().__init__()
        names = "functional forked shared again twice other hooked watched last fused swish"
        for name in names.split():
            setattr(self, name, nn.BatchNorm1d(4))
        self.relu, self.own, self.more, self.seen = nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.ReLU()
        self.tanhlike, self.relu6 = nn.GELU(approximate="tanh"), nn.ReLU6()
        self.hooked.register_forward_hook(lambda *_: None)
        self.seen.register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.functional(x))
        y = self.forked(x)
        x = nn.functional.silu(y) + y
        x = self.relu(self.again(self.relu(self.shared(x))))
        x = self.more(self.twice(self.twice(x)))
        x = self.relu6(self.other(x))
        x = self.seen(self.watched(self.hooked(x)))
        x = self.tanhlike(self.swish(x))
        return self.last(self.own(self.fused(x)))


def test_what_is_not_safe_is_kept() -> None:
    model = Unsafe().double()
    twin = copy.deepcopy(model)
    changes = sn.fuse_activations_(model)
    assert [change.name for change in changes] == ["fused", "own"]
    assert {change.name: change.reason for change in changes.kept} == {
        "functional": "followed by relu, called as a function",
        "forked": "its output is used 2 times",
        "shared": "its activation relu is called elsewhere too",
        "again": "its activation relu is called elsewhere too",
        "twice": "it is called 2 times",
        "other": "followed by torch.nn.ReLU6",
        "hooked": "it has hooks, which see its output",
        "watched": "its activation seen has hooks",
        "swish": "followed by torch.nn.GELU",
        "last": "followed by nothing, it is an output of the model",
    }
    agree_in_both_modes(model, twin, torch.randn(6, 4, dtype=torch.float64))


class Auxiliary(nn.Module):
    """In train mode the norm's output is used once more; in eval mode the activation is used without the norm."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.relu, self.act = nn.BatchNorm1d(3), nn.BatchNorm1d(3), nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        z = self.relu(y) + y if self.training else self.relu(y)
        return self.act(self.other(z) if self.training else z)


def test_both_modes_are_looked_at() -> None:
    changes = sn.fuse_activations_(Auxiliary())
    assert not changes
    assert [change.reason for change in changes.kept] == [
        "its output is used 2 times",
        "its activation act is called elsewhere too",
    ]


def test_resnet18() -> None:
    """torchvision's blocks use one ReLU twice, once behind the sum: only the stem's is safe."""
    torch.manual_seed(0)
    model = resnet18(nn.BatchNorm2d).double()
    twin = copy.deepcopy(model)
    changes = sn.fuse_activations_(model)
    assert [change.name for change in changes] == ["bn1", "relu"]
    reasons = {change.name: change.reason for change in changes.kept}
    assert len(reasons) == 19
    assert reasons["layer1.0.bn1"] == "its activation layer1.0.relu is called elsewhere too"
    assert reasons["layer1.0.bn2"] == "followed by add, called as a function"
    agree_in_both_modes(model, twin, torch.randn(3, 3, 32, 32, dtype=torch.float64))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.relu = nn.BatchNorm1d(3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(x)) if x.sum() > 0 else x


def test_what_cannot_be_traced_is_refused() -> None:
    model = Branching()
    with pytest.raises(ValueError, match=r"fuse_activations_: expected a model whose data flow torch\.fx can trace"):
        sn.fuse_activations_(model)
    assert type(model.norm) is nn.BatchNorm1d and model.training


def test_an_error_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
    from steadynorm.surgery import fuse

    become = fuse.become_

    def failing(layer: nn.Module, new: Any) -> None:
        if isinstance(layer, nn.ReLU):
            raise RuntimeError("in the middle")
        become(layer, new)

    monkeypatch.setattr(fuse, "become_", failing)
    with pytest.raises(RuntimeError, match="in the middle"):
        sn.fuse_activations_(model)
    assert [type(module) for module in model] == [nn.BatchNorm1d, nn.ReLU]
