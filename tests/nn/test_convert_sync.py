"""convert_sync_batchnorm: the same parameters, settings, hooks and names in layers that synchronize."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import steadynorm as sn

from ..support.refusals import expect_unchanged
from ..support.twins import agree_in_state

KINDS = [
    *(getattr(library, kind) for library in (nn, sn) for kind in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d")),
    nn.SyncBatchNorm,
    sn.SyncBatchNorm,
]
convert = sn.SyncBatchNorm.convert_sync_batchnorm


class Network(nn.Module):
    """Layers in lists, in dictionaries, by name, shared, and none at all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, eps=1e-3), nn.ReLU())
        self.blocks = nn.ModuleList([sn.BatchNorm2d(4, activation="leaky_relu", negative_slope=0.3) for _ in range(2)])
        self.heads = nn.ModuleDict({"one": nn.BatchNorm2d(4, momentum=None), "other": self.stem[1]})
        self.norm = nn.GroupNorm(2, 4)
        self.nothing = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(self.heads["other"](self.heads["one"](x)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_a_layer_alone_is_replaced(kind: type[nn.modules.batchnorm._BatchNorm], training: bool) -> None:
    layer = kind(3, eps=1e-2, momentum=None, bias=False).train(training)
    new = convert(layer)
    assert type(new) is sn.SyncBatchNorm
    assert new.weight is layer.weight
    assert new.running_var is layer.running_var
    assert new.num_batches_tracked is layer.num_batches_tracked
    assert (new.bias, new.eps, new.momentum, new.training) == (None, 1e-2, None, training)
    agree_in_state(new, layer, rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{"affine": False}, {"track_running_stats": False}], ids=str)
def test_what_a_layer_has_not_stays_away(settings: dict[str, bool]) -> None:
    new = convert(nn.BatchNorm1d(3, **settings))
    twin = nn.SyncBatchNorm(3, **settings)
    assert repr(new) == repr(twin)
    agree_in_state(new, twin)
    assert new(torch.randn(4, 3)).shape == (4, 3)


def test_settings_of_our_layers_are_kept() -> None:
    new = convert(sn.BatchNorm1d(3, activation="leaky_relu", negative_slope=0.3, single_value="running"))
    assert isinstance(new, sn.SyncBatchNorm)
    assert (new.activation, new.negative_slope, new.single_value) == ("leaky_relu", 0.3, "running")


def test_a_network() -> None:
    """In place; each layer once, shared ones stay shared, with its name; same order, output and optimizer.

    In float64, whose roundings two steps do not make as large as what is compared.
    """
    model = Network().double()
    twin, names = copy.deepcopy(model), [name for name, _ in model.named_parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    parameters = list(model.parameters())
    assert convert(model) is model
    assert [name for name, _ in model.named_parameters()] == names
    assert all(new is old for new, old in zip(model.parameters(), parameters, strict=True))
    layers = [module for module in model.modules() if isinstance(module, sn.SyncBatchNorm)]
    assert [layer._path for layer in layers] == ["stem.1", "blocks.0", "blocks.1", "heads.one"]
    assert not any(isinstance(module, (nn.BatchNorm2d, sn.BatchNorm2d)) for module in model.modules())
    assert model.heads["other"] is model.stem[1]
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    twin_optimizer = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    for network, steps in ((model, optimizer), (twin, twin_optimizer)):
        for _ in range(2):
            steps.zero_grad()
            network(x).square().sum().backward()
            steps.step()
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))


def test_errors_name_the_layer() -> None:
    model = Network()
    convert(model)
    with pytest.raises(RuntimeError, match=r"^SyncBatchNorm\(num_features=4\) at 'blocks\.1': expected running_mean"):
        model.blocks[1](torch.randn(2, 5, 3, 3))


def test_hooks_stay_and_can_be_removed() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3))
    called: list[nn.Module] = []
    handle = model[0].register_forward_hook(lambda module, *_: called.append(module))
    convert(model)
    model(torch.randn(4, 3))
    handle.remove()
    model(torch.randn(4, 3))
    assert called == [model[0]]


def test_converting_twice_changes_nothing() -> None:
    model = convert(Network())
    before = repr(model)
    assert repr(convert(model)) == before


def test_nothing_to_convert() -> None:
    model = nn.Linear(3, 3)
    assert convert(model) is model


class Own(nn.BatchNorm1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


def patched() -> nn.Module:
    layer = nn.BatchNorm1d(3)
    layer.forward = lambda input: input  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Own(3), "got tests.nn.test_convert_sync.Own at '2', whose own forward would be lost"),
        (patched, "got torch.nn.modules.batchnorm.BatchNorm1d at '2', whose own forward would be lost"),
        (nn.LazyBatchNorm1d, "got torch.nn.modules.batchnorm.LazyBatchNorm1d at '2'. Run a batch first"),
    ],
    ids=["own forward", "patched", "lazy"],
)
def test_refused_with_nothing_changed(build: Callable[[], nn.Module], message: str) -> None:
    """Also not the layers before it."""
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3), build())
    kinds = [type(module) for module in model.modules()]

    def refused() -> None:
        with pytest.raises(ValueError, match=message) as info:
            convert(model)
        assert isinstance(info.value, sn.SteadynormError)

    if isinstance(model[2], nn.LazyBatchNorm1d):
        refused()
        model[2](torch.randn(4, 3))
        assert isinstance(convert(model)[2], sn.SyncBatchNorm)  # type: ignore[index]
        return
    expect_unchanged(model, refused)
    assert [type(module) for module in model.modules()] == kinds
