"""What cannot be converted is refused before anything changes; what fails in the middle is undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrize, weight_norm

import steadynorm as sn
from steadynorm.surgery import convert as module

from ..support.launch import launch
from ..support.marks import TORCH_JIT_WARNS
from ..support.networks import Network, networks
from ..support.refusals import expect_unchanged
from .test_convert import convert, norms


class Own(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


class Still(nn.BatchNorm1d):
    """Its statistics stay in train mode."""

    def train(self, mode: bool = True) -> Still:
        return super().train(False)


class Counted:
    """What a class adds from the side."""

    @property
    def count(self) -> int:
        return 1


class Mixed(nn.BatchNorm1d, Counted):
    pass


class OfOurs(sn.BatchNorm1d):
    pass


class Wider(nn.BatchNorm1d):
    def __init__(self) -> None:
        super().__init__(3)
        self.extra = nn.Parameter(torch.zeros(3))


def patched() -> nn.Module:
    layer = nn.BatchNorm1d(3)
    layer.forward = lambda input: input  # type: ignore[method-assign]
    return layer


def parametrized() -> nn.Module:
    return parametrize.register_parametrization(nn.BatchNorm1d(3), "weight", nn.Identity())


def single() -> nn.Module:
    return sn.BatchNorm1d(3, single_value="running")


REFUSED: list[tuple[Callable[[], nn.Module], str, str]] = [
    (lambda: Own(3), "sync", "Own: its own forward would be lost"),
    (lambda: Still(3), "sync", r"Still: Still\.train would be lost"),
    (lambda: Still(3), "frozen", r"Still: Still\.train would be lost"),
    (lambda: Mixed(3), "sync", r"Mixed: Counted\.count would be lost"),
    (lambda: OfOurs(3), "ghost", "its class OfOurs would be lost, which is derived from ours"),
    (patched, "sync", "its own forward would be lost"),
    (Wider, "sync", "parameters or buffers of its own"),
    (parametrized, "sync", "parametrized; remove the parametrization first"),
    (lambda: sn.WhiteningBatchNorm(4), "torch", "it has a covariance, which no other layer has"),
    (lambda: sn.BatchNorm1d(3, activation="relu"), "torch", "its activation 'relu' would be lost"),
    (lambda: sn.BatchNorm1d(4, activation="relu"), "group", "its activation 'relu' would be lost"),
    (single, "torch", "its single_value='running' would be lost"),
    (lambda: nn.SyncBatchNorm(3), "ghost", "1, 2 or 3 dimensions; pass example_inputs"),
    (lambda: nn.BatchNorm1d(1), "layer", "more than one value a channel and example is not known"),
]


@pytest.mark.parametrize(("build", "to", "message"), REFUSED, ids=[f"{to}: {m[:20]}" for _, to, m in REFUSED])
def test_refused_with_nothing_changed(build: Callable[[], nn.Module], to: str, message: str) -> None:
    """The layer is named, and layers before it are as they were; left out by filter_fn, the rest is converted."""
    bad = build()
    model = nn.Sequential(sn.BatchNorm1d(4), bad)
    kinds = [type(module) for module in model.modules()]

    def refused() -> None:
        with pytest.raises(ValueError, match=f"convert_: 1 of 2 layers(.|\n)*1: [^\n]*{message}") as info:
            convert(model, to)
        assert isinstance(info.value, sn.SteadynormError)

    expect_unchanged(model, refused)
    assert [type(module) for module in model.modules()] == kinds
    if to != "torch":
        assert len(convert(model, to, filter_fn=lambda layer, _: layer is not bad)) == 1


def test_lazy() -> None:
    model = nn.Sequential(nn.LazyBatchNorm1d())
    with pytest.raises(ValueError, match=r"0: .*LazyBatchNorm1d: it is lazy and does not know its channels"):
        sn.convert_(model, to="sync")
    model(torch.randn(4, 3))
    sn.convert_(model, to="sync")
    assert type(model[0]) is sn.SyncBatchNorm


def test_inside_a_guard() -> None:
    """A layer that a context watches is not taken from it."""
    model = nn.Sequential(sn.BatchNorm1d(3))
    with sn.guard_statistics(model), pytest.raises(ValueError, match="leave that context first"):
        sn.convert_(model, to="ghost", virtual_batch_size=2)
    with sn.accumulate_statistics(model, 2), pytest.raises(ValueError, match="leave that context first"):
        sn.freeze_(model)


def test_held_statistics_stay_held() -> None:
    """The layer is the same object, so the context that holds it lets it go."""
    model = nn.Sequential(nn.BatchNorm1d(3))
    with sn.hold_statistics(model):
        sn.convert_(model, to="steadynorm")
        model(torch.randn(4, 3))
        assert int(model[0].num_batches_tracked) == 0  # type: ignore[arg-type]
    model(torch.randn(4, 3))
    assert int(model[0].num_batches_tracked) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"to": "batch"}, "expected to= one of torch, steadynorm, .*got 'batch'"),
        ({"to": "sync", "momentum": 0.1}, "for to='sync' only process_group of the settings, got momentum"),
        ({"to": "torch", "eps": 0.1}, "for to='torch' none of the settings, got eps"),
        ({"to": "ghost"}, 'expected virtual_batch_size for to="ghost"'),
        ({"to": "ghost", "virtual_batch_size": 0}, r"convert_: at '0': GhostBatchNorm1d: expected virtual_batch_size"),
        ({"to": "renorm", "rmax": 0.5}, "convert_: at '0': BatchRenorm1d: expected rmax >= 1"),
        ({"to": "group", "num_groups": 0}, "expected num_groups, at most so many groups, to be >= 1, got 0"),
        ({"to": "instance", "example_inputs": torch.ones(2, 9)}, "expected example_inputs that the model takes"),
        ({"to": "instance", "example_inputs": 3}, "expected example_inputs, a tensor, a tuple of arguments or a dict"),
        ({"to": "none", "optimizer": "adam"}, "expected a torch.optim.Optimizer, got str"),
    ],
    ids=str,
)
def test_bad_arguments(given: dict[str, Any], message: str) -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(ValueError, match=message) as info:
        sn.convert_(model, **given)
    assert isinstance(info.value, sn.SteadynormError)
    assert type(model[0]) is nn.BatchNorm1d


def test_no_model() -> None:
    with pytest.raises(ValueError, match=r"expected a torch\.nn\.Module, got str"):
        sn.convert_("model", to="sync")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected a model with batch normalization layers, got a Linear"):
        sn.convert_(nn.Linear(3, 3), to="sync")


@settings(deadline=None, max_examples=15)
@given(networks(), st.sampled_from(["sync", "renorm", "frozen", "group"]), st.integers(0, 3))
def test_an_error_in_the_middle(network: Network, to: str, after: int) -> None:
    """Classes, attributes, parameters, children, hooks and modes are as before, whichever layer fails."""
    model, _ = network
    called: list[nn.Module] = []
    handles = [layer.register_forward_hook(lambda layer, *_: called.append(layer)) for layer in norms(model)]
    before = [(m, type(m), dict(m.__dict__), dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    become, turned = module.become_, []

    def failing(layer: nn.Module, new: nn.Module) -> None:
        if len(turned) == min(after, len(handles) - 1):
            raise RuntimeError("in the middle")
        turned.append(layer)
        become(layer, new)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "become_", failing)
        with pytest.raises(RuntimeError, match="in the middle"):
            convert(model, to)
    for (m, kind, attributes, parameters, buffers), now in zip(before, model.modules(), strict=True):
        assert now is m and type(m) is kind
        assert m.__dict__ == attributes
        assert all(m._parameters[name] is value for name, value in parameters.items())
        assert all(m._buffers[name] is value for name, value in buffers.items())
    for handle in handles:
        handle.remove()
    model(network.example)
    assert not called


# ---- models that others have wrapped ----


def compiled_in_place() -> nn.Module:
    model = nn.Sequential(nn.BatchNorm1d(3))
    model.compile()
    return model


class FSDPModule:
    """Stands for torch's, which `fully_shard` puts among a module's classes."""


class Sharded(FSDPModule, nn.Sequential):
    pass


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: nn.DataParallel(nn.BatchNorm1d(3)), r"DataParallel at ''.*Change model\.module, before it is wrapped"),
        (lambda: torch.compile(nn.BatchNorm1d(3)), "OptimizedModule at ''.*before it is compiled"),
        (compiled_in_place, "Sequential at ''.*before it is compiled"),
        (lambda: Sharded(nn.BatchNorm1d(3)), "Sharded at ''.*before it is sharded"),
        (lambda: nn.Sequential(nn.DataParallel(nn.BatchNorm1d(3))), "DataParallel at '0'"),
    ],
    ids=["data parallel", "compiled", "compiled in place", "sharded", "inside"],
)
@TORCH_JIT_WARNS
@pytest.mark.parametrize("verb", ["convert_", "insert_", "fuse_activations_", "freeze_", "unfreeze_"])
def test_wrapped(build: Callable[[], Any], message: str, verb: str) -> None:
    given = {"convert_": {"to": "sync"}, "insert_": {"example_inputs": torch.randn(2, 3)}}.get(verb, {})
    with pytest.raises(ValueError, match=f"{verb}: expected a plain model, got {message}"):
        getattr(sn, verb)(build(), **given)


def distributed(rank: int) -> str:
    model = nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
    with pytest.raises(ValueError, match=r"got DistributedDataParallel at ''.*model\.module"):
        sn.convert_(model, to="sync")
    return type(model.module[1]).__name__


def test_ddp() -> None:
    assert launch(distributed, 1) == ["BatchNorm1d"]


def test_weight_norm() -> None:
    """Its weight is no parameter but computed from two."""
    with pytest.warns(FutureWarning):
        layer = weight_norm(nn.BatchNorm1d(3), dim=0)
    with pytest.raises(ValueError, match="parameters or buffers of its own"):
        sn.convert_(nn.Sequential(layer), to="sync")


# ---- what the model's own code does with its layers ----


class Uses(nn.Module):
    """Calls its norm with a residual, a mask, or reads what it holds."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.norm = sn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "residual":
            return self.norm(x, residual=x)
        if self.how == "mask":
            return self.norm(x, mask=x[:, 0] > 0)
        return self.norm(x) + getattr(self.norm, self.how)


@pytest.mark.parametrize(
    ("how", "to", "message"),
    [
        *((how, to, f"calls it with {how}") for how in ("residual", "mask") for to in ("torch", "none", "group")),
        ("weight", "none", "reads its weight, which the new layer has not"),
        ("running_var", "none", "reads its running_var"),
        ("running_var", "layer", "reads its running_var"),
    ],
)
def test_what_the_models_code_needs(how: str, to: str, message: str) -> None:
    model = Uses(how)
    with pytest.raises(ValueError, match=f"convert_: 1 of 1 layers.*(.|\n)*norm: .*{message}"):
        convert(model, to)
    assert type(model.norm) is sn.BatchNorm1d


def test_what_the_models_code_has_after_all() -> None:
    for how, to in (("weight", "group"), ("running_var", "torch"), ("residual", "ghost")):
        model = Uses(how)
        assert len(convert(model, to)) == 1
        model(torch.randn(6, 4))
