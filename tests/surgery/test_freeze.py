"""freeze_ and unfreeze_: nothing moves while frozen, and the way back gives the very parameters."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from torch import nn

import steadynorm as sn
from steadynorm.surgery import freeze as module

from ..support.networks import Network, networks
from ..support.twins import agree_in_state
from .test_convert import norms, outputs, same_state, state


@settings(deadline=None, max_examples=25)
@given(networks())
def test_there_and_back_is_the_identity(network: Network) -> None:
    """Frozen, the train mode's norms are the eval mode's; back again, everything is the same object and value."""
    model, x = network
    before, expected = state(model), outputs(model, x)
    tensors, kinds = [*model.parameters(), *model.buffers()], [type(m) for m in model.modules()]
    changes = sn.freeze_(model)
    same_state(model, before)
    assert not norms(model)
    assert len(changes) == sum(issubclass(kind, nn.modules.batchnorm._BatchNorm) for kind in kinds)
    torch.testing.assert_close(outputs(model, x), expected, rtol=1e-12, atol=1e-12)
    model.train()(x.clone())
    same_state(model, before)
    sn.unfreeze_(model)
    same_state(model, before)
    assert [type(m) for m in model.modules()] == kinds
    assert all(a is b for a, b in zip(tensors, [*model.parameters(), *model.buffers()], strict=True))
    assert torch.equal(outputs(model, x), expected)


def build() -> Any:
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), sn.BatchNorm1d(4)).double()


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    x = torch.randn(8, 3, dtype=torch.float64)
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizer_goes_on(kind: Any) -> None:
    """With momentum and decay: frozen, the norms stand bit for bit while the rest learns; then they learn again."""
    model = build()
    optimizer = kind([{"params": list(model.parameters()), "lr": 0.1, "weight_decay": 0.1}])
    train(model, optimizer)
    x = torch.randn(8, 3, dtype=torch.float64)
    model(x).sum().backward()  # gradients that are still there when the layers freeze
    sn.freeze_(model)
    frozen = state(model)
    for _ in range(2):
        model.train()
        train(model, optimizer)
        after = state(model)
        still = {name for name in frozen if torch.equal(frozen[name], after[name])}
        assert still == {name for name in frozen if name[0] in "14"}
        optimizer.step()
    sn.unfreeze_(model)
    assert all(torch.equal(state(model)[name], frozen[name]) for name in frozen if name[0] in "14")
    train(model, optimizer)
    assert not torch.equal(model[1].weight, frozen["1.weight"])
    assert not torch.equal(model[1].running_mean, frozen["1.running_mean"])


def test_filter() -> None:
    """By name; what is frozen stays so when the rest is frozen too, and thaws by name."""
    model = build()
    assert [change.name for change in sn.freeze_(model, filter_fn=lambda layer, name: name == "4")] == ["4"]
    assert type(model[1]) is nn.BatchNorm1d
    changes = sn.freeze_(model)
    assert [change.name for change in changes] == ["1"]
    assert str(changes.kept[0]) == "4: steadynorm.FrozenBatchNorm kept (frozen; unfreeze_ it first)"
    changes = sn.unfreeze_(model, filter_fn=lambda layer, name: name == "1")
    assert [str(c) for c in changes] == ["1: steadynorm.FrozenBatchNorm → torch.nn.BatchNorm1d"]
    assert [c.reason for c in changes.kept] == ["filter_fn"]


def test_what_happens_meanwhile_counts() -> None:
    """A state dict loaded, another dtype, another mode, a hook removed: all are there after unfreezing."""
    model, other = build(), build()
    torch.nn.init.normal_(other[1].running_mean)
    called: list[int] = []
    handle = model[1].register_forward_hook(lambda *_: called.append(1))
    weight = model[1].weight
    sn.freeze_(model)
    model.load_state_dict(other.state_dict())
    model.float().eval()
    model(torch.randn(2, 3))
    handle.remove()
    sn.unfreeze_(model)
    assert model[1].weight is weight
    assert weight.dtype == torch.float32 and isinstance(weight, nn.Parameter)
    assert not model[1].training
    agree_in_state(model, other.float(), rtol=0, atol=0)
    model(torch.randn(2, 3))
    assert called == [1]


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deep", "pickle"]
)
def test_copies_have_their_own_originals(copied: Any) -> None:
    model = build()
    convert: Any = sn.SyncBatchNorm.convert_sync_batchnorm(model)
    sn.freeze_(convert)
    twin = copied(convert)
    torch.nn.init.constant_(twin[1].running_mean, 3.0)
    sn.unfreeze_(twin)
    assert type(twin[1]) is sn.SyncBatchNorm
    assert twin[1].running_mean.eq(3).all()
    assert type(convert[1]) is sn.FrozenBatchNorm
    sn.unfreeze_(convert)
    assert convert[1].running_mean.eq(0).all()
    assert twin[1].weight is not convert[1].weight


def test_sixteen_bits_stay_sixteen() -> None:
    layer = nn.BatchNorm1d(3).half()
    before = state(layer)
    sn.freeze_(layer)
    sn.unfreeze_(layer)
    same_state(layer, before)
    assert layer.weight.dtype == torch.float16


def test_built_frozen_is_kept() -> None:
    layer = sn.FrozenBatchNorm(3)
    assert "what it was is not known" in sn.unfreeze_(layer).kept[0].reason


@pytest.mark.parametrize(
    ("model", "verb", "message"),
    [
        (nn.Linear(3, 3), sn.freeze_, "freeze_: expected a model with batch normalization layers"),
        (nn.Linear(3, 3), sn.unfreeze_, "unfreeze_: expected a model with frozen layers, got none"),
        (nn.BatchNorm1d(3, track_running_stats=False), sn.freeze_, r"the model\): .*no running statistics to freeze"),
        (sn.WhiteningBatchNorm(4), sn.freeze_, "has a covariance"),
        (nn.DataParallel(nn.BatchNorm1d(3)), sn.freeze_, r"got DataParallel at ''.* Change model\.module"),
    ],
    ids=["none", "none frozen", "no statistics", "whitening", "wrapped"],
)
def test_refused(model: nn.Module, verb: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as info:
        verb(model)
    assert isinstance(info.value, sn.SteadynormError)


def test_another_shape_is_refused() -> None:
    model = build()
    sn.freeze_(model)
    model[1].running_mean = torch.zeros(7)
    with pytest.raises(
        ValueError, match=r"unfreeze_: expected running_mean of shape \(4,\), as it was frozen, got \(7,\)"
    ):
        sn.unfreeze_(model)
    assert type(model[4]) is sn.FrozenBatchNorm


def test_an_error_in_the_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    sn.freeze_(model)
    before, become = dict(model[1].__dict__), module.become_

    def failing(layer: nn.Module, new: nn.Module) -> None:
        if layer is model[4]:
            raise KeyboardInterrupt
        become(layer, new)

    monkeypatch.setattr(module, "become_", failing)
    with pytest.raises(KeyboardInterrupt):
        sn.unfreeze_(model)
    assert type(model[1]) is sn.FrozenBatchNorm
    assert model[1].__dict__ == before


def test_frozen_while_held() -> None:
    """The context lets go of the layer that is there when it is left."""
    model = build()
    with sn.hold_statistics(model):
        sn.freeze_(model)
    sn.unfreeze_(model)
    assert model[1].track_running_stats and model[4].track_running_stats
    model(torch.randn(8, 3, dtype=torch.float64))
    assert int(model[1].num_batches_tracked) == 1
    with sn.hold_statistics(model):
        sn.freeze_(model)
        sn.unfreeze_(model)
        assert not model[1].track_running_stats
    assert model[1].track_running_stats


def test_shared_parameters() -> None:
    """A parameter that goes on learning elsewhere is not frozen, and not written over."""
    model: Any = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[1].weight = model[0].weight
    model(torch.randn(4, 3)).square().sum().backward()
    with pytest.raises(ValueError, match=r"freeze_: 1 of 1 layers(.|\n)*0: .*it shares a parameter with '1'"):
        sn.freeze_(model, filter_fn=lambda layer, name: name == "0")
    assert model[0].weight.grad is not None
    sn.freeze_(model)
    with pytest.raises(ValueError, match=r"unfreeze_: expected layers that share a parameter .* got '1' left frozen"):
        sn.unfreeze_(model, filter_fn=lambda layer, name: name == "0")
    assert type(model[0]) is sn.FrozenBatchNorm
    sn.unfreeze_(model)
    assert model[0].weight is model[1].weight


def test_no_values_to_take_back() -> None:
    model = build()
    sn.freeze_(model)
    model.to("meta")
    with pytest.raises(ValueError, match="unfreeze_: expected weight where values are, got it on meta and on cpu"):
        sn.unfreeze_(model)
    assert [type(model[i]) for i in (1, 4)] == [sn.FrozenBatchNorm] * 2


def test_an_error_while_values_are_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    sn.freeze_(model)

    def failing(*_: Any) -> None:
        raise RuntimeError("in the middle")

    monkeypatch.setattr(module, "_put_back", failing)
    with pytest.raises(RuntimeError, match="in the middle"):
        sn.unfreeze_(model)
    assert [type(model[i]) for i in (1, 4)] == [sn.FrozenBatchNorm] * 2


def test_under_inference_mode() -> None:
    """What is built there can be trained through afterwards."""
    model = build()
    with torch.inference_mode():
        sn.freeze_(model)
    assert not any(buffer.is_inference() for buffer in model.buffers())
    model(torch.randn(8, 3, dtype=torch.float64)).sum().backward()
    model.float()
    with torch.inference_mode():
        sn.unfreeze_(model)
    assert not any(value.is_inference() for value in (*model.parameters(), *model.buffers()))
    model(torch.randn(8, 3)).sum().backward()
