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
from ..support.networks import HOSTILE, Listed, Network, Skip, networks, randomise
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
        (nn.ReLU6(inplace=True), "relu6"),
        (nn.LeakyReLU(0.3), "leaky_relu"),
        (nn.SiLU(), "silu"),
        (nn.Hardswish(), "hardswish"),
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
        self.tanhlike, self.elu = nn.GELU(approximate="tanh"), nn.ELU()
        self.hooked.register_forward_hook(lambda *_: None)
        self.seen.register_forward_hook(lambda *_: None)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.functional(x))
        y = self.forked(x)
        x = nn.functional.silu(y) + y
        x = self.relu(self.again(self.relu(self.shared(x))))
        x = self.more(self.twice(self.twice(x)))
        x = self.elu(self.other(x))
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
        "other": "followed by torch.nn.ELU",
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


@pytest.mark.parametrize("kind", HOSTILE, ids=lambda kind: kind.__name__)
def test_what_torch_fx_does_not_show(kind: Any) -> None:
    """Two calls on new inputs give what the model gave; what the model holds is not touched by the tracing."""
    model = randomise(nn.Sequential(nn.Linear(4, 4), kind(nn.BatchNorm1d(4), nn.SiLU()))).double()
    twin, held = copy.deepcopy(model), {name: dict(part.__dict__) for name, part in model.named_modules()}
    changes = sn.fuse_activations_(model)
    assert bool(changes) is (kind is Listed)
    for name, part in model.named_modules():
        if not changes:
            assert part.__dict__ == held[name]
    for _ in range(2):
        agree_in_both_modes(model, twin, torch.randn(6, 4, dtype=torch.float64))


def test_an_argument_that_is_given() -> None:
    """As default and as given are both looked at: here one would be safe."""
    changes = sn.fuse_activations_(Skip(nn.BatchNorm1d(3), nn.ReLU()))
    assert [change.reason for change in changes.kept] == ["its output is used 2 times"]


class Flag(nn.Module):
    """A flag with a default decides what is added."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act, self.last, self.relu = nn.BatchNorm1d(4), nn.ReLU(), nn.BatchNorm1d(4), nn.ReLU()

    def forward(self, x: Tensor, double: bool = False) -> Tensor:
        y = self.norm(x)
        z = self.relu(self.last(self.act(y)))
        return z + y if double else z


def test_a_flag() -> None:
    """torch.fx cannot follow `if double:` without its value; with it, either way."""
    model = Flag().double()
    twin = copy.deepcopy(model)
    changes = sn.fuse_activations_(model)
    assert [change.name for change in changes] == ["last", "relu"]
    assert changes.kept[0].reason == "its output is used 2 times"
    x = torch.randn(5, 4, dtype=torch.float64)
    for double in (False, True):
        torch.testing.assert_close(model(x, double), twin(x, double), rtol=1e-9, atol=1e-9)


class Inside(nn.Module):
    """The activation is also that of a layer that torch.fx keeps whole."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm1d(4), nn.ReLU()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, 0.0, activation=self.act, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(self.act(self.norm(x)).unsqueeze(1))


def test_an_activation_inside_another_layer() -> None:
    model = Inside().double()
    twin = copy.deepcopy(model)
    changes = sn.fuse_activations_(model)
    assert changes.kept[0].reason == "it, or its activation act, is in a layer that torch.fx does not look into"
    agree_in_both_modes(model, twin, torch.randn(6, 4, dtype=torch.float64))


def test_a_hook_of_the_block_sees_what_it_saw() -> None:
    """And is not called by the tracing."""
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), nn.ReLU())
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda *given: seen.append(given[-1]))
    changes = sn.fuse_activations_(model)
    assert changes.kept[0].reason == "its output is kept, or seen by a hook, beside what follows"
    assert not seen


def test_masked_sigmoid() -> None:
    """A layer with a mask and a sigmoid inside gives 0 where the module behind it gives 1/2."""

    class Masked(nn.Module):
        def __init__(self, act: nn.Module) -> None:
            super().__init__()
            self.norm, self.act = sn.BatchNorm1d(3), act

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.act(self.norm(x, mask=mask))

    assert "sigmoid" in sn.fuse_activations_(Masked(nn.Sigmoid())).kept[0].reason
    model, mask = Masked(nn.SiLU()), torch.tensor([True, True, False])
    twin, x = copy.deepcopy(model), torch.randn(3, 3)
    assert len(sn.fuse_activations_(model)) == 2
    torch.testing.assert_close(model(x, mask), twin(x, mask))


def test_frozen_layers_are_named() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
    sn.freeze_(model)
    changes = sn.fuse_activations_(model)
    assert str(changes).splitlines() == [
        "0 changed, 1 kept",
        "0: steadynorm.FrozenBatchNorm kept (frozen; unfreeze_ it first)",
    ]


def test_our_own_layer_is_told_as_changed() -> None:
    changes = sn.fuse_activations_(nn.Sequential(sn.BatchNorm1d(3), nn.ReLU()))
    assert str(changes[0]) == "0: steadynorm.BatchNorm1d changed (applies 1)"


class Replaced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm1d(3), nn.ReLU()
        self.forward = lambda x: self.norm(x)


def test_what_cannot_be_copied_or_is_patched_is_refused() -> None:
    with pytest.raises(ValueError, match=r"its forward is set on the object, where torch\.fx does not look"):
        sn.fuse_activations_(Replaced())
    model = nn.Sequential(nn.BatchNorm1d(3), nn.ReLU())
    model.noise = torch.ones(3, requires_grad=True) * 2  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"fuse_activations_: expected a model that copy\.deepcopy can copy"):
        sn.fuse_activations_(model)


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
