"""convert_: there and back is the identity; each kind is what it says; nothing is lost in silence."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import steadynorm as sn

from ..support.networks import Network, networks

FAMILY = ["torch", "steadynorm", "sync", "ghost", "renorm"]
OPTIONS: dict[str, dict[str, Any]] = {"ghost": {"virtual_batch_size": 2}}
TORCHS = nn.modules.batchnorm._BatchNorm


def convert(model: nn.Module, to: str, **given: Any) -> sn.surgery.Changes:
    return sn.convert_(model, to=to, **OPTIONS.get(to, {}), **given)


def norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, TORCHS)]


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    """In eval mode, modes as before."""
    modes = {module: module.training for module in model.modules()}
    y = model.eval()(x.clone())
    for module, training in modes.items():
        module.training = training
    return y.detach()


@settings(deadline=None, max_examples=25)
@given(networks(), st.sampled_from(FAMILY))
def test_there_and_back_is_the_identity(network: Network, to: str) -> None:
    """For every network: state dict, the very parameters and buffers, outputs, names; in between outputs agree too."""
    model, x = network
    before, expected, kinds = state(model), outputs(model, x), [type(module) for module in model.modules()]
    tensors = [*model.parameters(), *model.buffers()]
    layers = [module for _, module in model.named_modules(remove_duplicate=False)]
    convert(model, to)
    same_state(model, before)
    torch.testing.assert_close(outputs(model, x), expected, rtol=1e-9, atol=1e-9)
    for kind in (nn, sn):
        own = [m for m, k in zip(list(model.modules()), kinds, strict=True) if issubclass(k, TORCHS) and _is(k, kind)]
        convert(model, "torch" if kind is nn else "steadynorm", filter_fn=lambda layer, _, own=own: layer in own)
    same_state(model, before)
    assert [type(module) for module in model.modules()] == kinds
    assert all(a is b for a, b in zip(tensors, [*model.parameters(), *model.buffers()], strict=True))
    assert all(a is b for a, (_, b) in zip(layers, model.named_modules(remove_duplicate=False), strict=True))
    assert torch.equal(outputs(model, x), expected)


def _is(kind: type, library: Any) -> bool:
    return kind.__module__.startswith(library.__name__)


@settings(deadline=None, max_examples=25)
@given(networks(), st.sampled_from(["sync", "steadynorm"]))
def test_training_is_the_same(network: Network, to: str) -> None:
    """One step in train mode: what torch's layers do, ours do, to rounding; an optimizer built before goes on."""
    model, x = network
    twin = copy.deepcopy(model)
    optimizers = [torch.optim.SGD([{"params": list(m.parameters())}], lr=0.01) for m in (model, twin)]
    convert(model, to)
    for network_, optimizer in zip((model, twin), optimizers, strict=True):
        torch.manual_seed(0)
        y = network_(x.clone().requires_grad_() * 1)
        y.square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("to", FAMILY)
@pytest.mark.parametrize("source", FAMILY)
def test_every_kind_becomes_every_other(source: str, to: str, number: int) -> None:
    """Settings, hooks and mode stay; the class is that of the dimensions, also after "sync", which has one for all."""
    layer = getattr(nn, f"BatchNorm{number}d")(4, eps=1e-2, momentum=None, bias=False).eval()
    called: list[nn.Module] = []
    handle = layer.register_forward_hook(lambda module, *_: called.append(module))
    convert(layer, source)
    convert(layer, to)
    kinds = {"torch": nn, "steadynorm": sn}
    if to in kinds:
        assert type(layer) is getattr(kinds[to], f"BatchNorm{number}d")
    else:
        assert type(layer).__name__ == {"sync": "SyncBatchNorm"}.get(
            to, {"ghost": f"GhostBatchNorm{number}d", "renorm": f"BatchRenorm{number}d"}.get(to)
        )
    assert (layer.eps, layer.momentum, layer.bias, layer.training) == (1e-2, None, None, False)
    layer(torch.randn(2, 4, *[3] * number))
    handle.remove()
    layer.train()(torch.randn(4, 4, *[3] * number)).sum().backward()
    assert called == [layer]
    assert isinstance(pickle.loads(pickle.dumps(layer)), type(layer))
    assert set(layer.__dict__) >= set(type(layer)(4, **OPTIONS.get(to, {})).__dict__)


def test_settings_of_the_new_layers() -> None:
    model = nn.Sequential(sn.BatchNorm2d(4, activation="leaky_relu", negative_slope=0.3, single_value="running"))
    sn.convert_(model, to="ghost", virtual_batch_size=7)
    sn.convert_(model, to="ghost", virtual_batch_size=8)
    layer: Any = model[0]
    assert (layer.virtual_batch_size, layer.activation, layer.negative_slope) == (8, "leaky_relu", 0.3)
    sn.convert_(model, to="renorm", rmax=2.0, dmax=1.0)
    assert (layer.rmax, layer.dmax, layer.single_value) == (2.0, 1.0, "running")
    assert not hasattr(layer, "virtual_batch_size")


def test_what_was_converted_is_told() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), sn.BatchNorm1d(3), sn.FrozenBatchNorm(3), nn.BatchNorm1d(3))
    changes = sn.convert_(model, to="steadynorm", filter_fn=lambda layer, name: name != "3")
    assert str(changes).splitlines() == [
        "1 changed, 3 kept",
        "0: torch.nn.BatchNorm1d → steadynorm.BatchNorm1d",
        "1: steadynorm.BatchNorm1d kept (is one already)",
        "2: steadynorm.FrozenBatchNorm kept (frozen; unfreeze_ it first)",
        "3: torch.nn.BatchNorm1d kept (filter_fn)",
    ]
    assert str(sn.convert_(model[3], to="sync")[0]).startswith("(the model): torch.nn.BatchNorm1d → steadynorm.Sync")


def test_new_settings_are_told() -> None:
    model = sn.GhostBatchNorm1d(4, virtual_batch_size=2)
    changes = sn.convert_(model, to="ghost", virtual_batch_size=8)
    assert str(changes[0]) == "(the model): steadynorm.GhostBatchNorm1d changed (virtual_batch_size=8)"


class Small(nn.BatchNorm1d):
    """A class of somebody's that has other defaults only."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-2)


@pytest.mark.parametrize("to", [*FAMILY[1:], "frozen"])
def test_there_and_back_to_somebodys_class(to: str) -> None:
    model = nn.Sequential(Small(3))
    attributes = dict(model[0].__dict__)
    convert(model, to)
    if to == "frozen":
        sn.unfreeze_(model)
    convert(model, "ghost")
    convert(model, "torch")
    assert type(model[0]) is Small
    assert model[0].__dict__ == attributes


def test_an_activation_is_not_lost_on_the_way_to_somebodys_class() -> None:
    """That of fuse_activations_, which the class did not have."""
    model = nn.Sequential(Small(3), nn.ReLU())
    sn.fuse_activations_(model)
    with pytest.raises(ValueError, match="its activation 'relu' would be lost"):
        sn.convert_(model, to="torch")


@pytest.mark.parametrize("through", ["torch", "steadynorm", "sync", "ghost", "frozen"])
def test_the_limits_of_renorm_are_remembered(through: str) -> None:
    model = nn.Sequential(Small(3))
    sn.convert_(model, to="renorm", rmax=2.0, dmax=1.0)
    convert(model, through)
    if through == "frozen":
        sn.unfreeze_(model)
    sn.convert_(model, to="renorm", dmax=3.0)
    layer: Any = model[0]
    assert (layer.rmax, layer.dmax) == (2.0, 3.0)


def test_a_shared_layer_is_converted_once() -> None:
    """Under all its names, also in a plain list that is no part of the module tree."""
    norm = nn.BatchNorm1d(3)
    model = nn.Sequential(norm, nn.Linear(3, 3), nn.Sequential(norm))
    beside = [norm]
    changes = sn.convert_(model, to="sync")
    assert len(changes) == 1
    assert model[0] is model[2][0] is beside[0]  # type: ignore[index]
    assert type(beside[0]) is sn.SyncBatchNorm


def test_sync_of_torch_knows_its_dimensions_from_an_example() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    with pytest.raises(ValueError, match=r"1: torch\.nn\.SyncBatchNorm: .*pass example_inputs"):
        sn.convert_(model, to="torch")
    sn.convert_(model, to="torch", example_inputs=torch.randn(2, 3, 4, 4))
    assert type(model[1]) is nn.BatchNorm2d  # type: ignore[index]


# ---- group, layer, instance, none ----


def by_groups(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Group normalization written out."""
    parts = x.reshape(len(x), groups, -1)
    mean, var = parts.mean(2, keepdim=True), parts.var(2, correction=0, keepdim=True)
    shape = (1, -1, *[1] * (x.dim() - 2))
    return ((parts - mean) / (var + eps).sqrt()).reshape(x.shape) * weight.reshape(shape) + bias.reshape(shape)


@pytest.mark.parametrize(("to", "groups"), [("group", 3), ("layer", 1), ("instance", 6)])
def test_norms_of_one_example(to: str, groups: int) -> None:
    """The old weight and bias, the old eps; of six channels at most 32 groups of two or more are three."""
    layer = nn.BatchNorm2d(6, eps=1e-3, dtype=torch.float64)
    nn.init.uniform_(layer.weight)
    nn.init.uniform_(layer.bias)
    weight, bias, x = layer.weight, layer.bias, torch.randn(2, 6, 4, 5, dtype=torch.float64)
    (change,) = sn.convert_(layer, to=to, example_inputs=x)
    assert "running statistics and their eval mode are gone" in change.reason
    assert layer.weight is weight and layer.bias is bias
    torch.testing.assert_close(layer(x), by_groups(x, groups, weight, bias, 1e-3), rtol=1e-12, atol=1e-12)
    assert list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize(
    ("channels", "most", "groups"), [(64, 32, 32), (24, 32, 12), (7, 32, 1), (12, 5, 4), (2, 9, 1)]
)
def test_groups_are_of_equal_size(channels: int, most: int, groups: int) -> None:
    layer: Any = nn.BatchNorm2d(channels)
    sn.convert_(layer, to="group", num_groups=most)
    assert layer.num_groups == groups


class Unused(nn.Linear):
    """Has a norm that its forward does not call."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.norm = nn.BatchNorm2d(1)


class Counts(nn.Module):
    """Counts its forwards, and keeps what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.seen = 0, []
        self.register_buffer("steps", torch.zeros(()))
        self.linear, self.norm = nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.append(x)
        self.last = x
        self.steps += 1
        return self.norm(self.linear(x))


@pytest.mark.parametrize(
    "verb",
    [
        lambda model: sn.convert_(model, to="none"),
        lambda model: sn.convert_(model, to="layer", example_inputs=torch.ones(2, 3)),
        lambda model: sn.fuse_activations_(model),
        lambda model: sn.insert_(nn.Sequential(nn.Linear(3, 3), nn.ReLU(), model), torch.ones(2, 3)),
    ],
    ids=["none", "layer", "fuse", "insert"],
)
def test_a_copy_is_traced_and_run(verb: Any) -> None:
    model = Counts()
    verb(model)
    assert (model.calls, model.seen, model.steps, hasattr(model, "last")) == (0, [], 0, False)


def test_nothing_is_erased() -> None:
    """opacus' replacement of a norm on (N, C) by as many groups as channels outputs the bias, whatever the input."""
    flat = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    x = torch.randn(5, 3)
    for options, message in [({}, "pass example_inputs"), ({"example_inputs": x}, r"\(5, 4\) nothing would be left")]:
        with pytest.raises(ValueError, match=f"1: torch.nn.BatchNorm1d: .*{message}"):
            sn.convert_(flat, to="instance", **options)
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4))
    with pytest.raises(ValueError, match="one value a group"):
        sn.convert_(pooled, to="instance", example_inputs=torch.randn(2, 4, 6, 6))
    with pytest.raises(ValueError, match="example does not reach it"):
        sn.convert_(Unused(), to="group", example_inputs=x)
    sn.convert_(flat, to="group", num_groups=4)
    assert flat(x).std() > 0.1
    assert isinstance(flat[1], nn.GroupNorm) and flat[1].num_groups == 2
