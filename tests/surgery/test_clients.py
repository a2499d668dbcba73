"""Networks of torchvision and timm, and a UNet, with every kind of layer: they train a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadynorm as sn

from ..support.models import resnet10t, resnet18, timm, torchvision
from .test_convert import norms, outputs, same_state, state

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class UNet(nn.Module):
    """Two levels, a grouped transposed convolution, a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 8, 3, 2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(True))
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 8, 2, 2, groups=4, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        return self.out(torch.cat([x, self.up(self.deep(x))], 1))


def mobilenet() -> nn.Module:
    return torchvision().models.mobilenet_v3_small(num_classes=5)


CLIENTS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: resnet18(nn.BatchNorm2d),
    "mobilenet_v3": mobilenet,
    "resnet10t": lambda: resnet10t(nn.BatchNorm2d),
    "unet": UNet,
}
KINDS: dict[str, dict[str, Any]] = {
    "steadynorm": {},
    "sync": {},
    "ghost": {"virtual_batch_size": 2},
    "renorm": {"rmax": 1.5, "dmax": 0.5},
}


def train_step(model: nn.Module) -> None:
    model.train()(X).square().mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", CLIENTS)
def test_every_kind(name: str) -> None:
    """Family members there and back, bit for bit; then each kind trains a step, converted from torch's."""
    torch.manual_seed(0)
    model = CLIENTS[name]()
    number, before, expected = len(norms(model)), state(model), outputs(model, X)
    for to in ("steadynorm", "sync", "ghost", "renorm"):
        assert len(sn.convert_(model, to=to, **KINDS[to])) == number
        same_state(model, before)
        torch.testing.assert_close(outputs(model, X), expected, rtol=1e-3, atol=1e-4)
        train_step(model)
        model.load_state_dict(before)
        model.zero_grad()
    sn.convert_(model, to="torch")
    assert torch.equal(outputs(model, X), expected)
    sn.freeze_(model)
    torch.testing.assert_close(outputs(model, X), expected, rtol=1e-3, atol=1e-4)
    train_step(model)
    same_state(model, before)
    sn.unfreeze_(model)
    assert torch.equal(outputs(model, X), expected)


@pytest.mark.parametrize("name", CLIENTS)
@pytest.mark.parametrize("to", ["group", "layer", "none"])
def test_kinds_without_running_statistics(name: str, to: str) -> None:
    """Train and eval mode agree afterwards, but for dropout."""
    torch.manual_seed(0)
    model = CLIENTS[name]()
    number = len(norms(model))
    assert len(sn.convert_(model, to=to)) == number
    assert not norms(model)
    train_step(model)
    if to == "none":
        biased = (module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)))
        assert all(module.bias is not None for module in biased)


def test_instance_norm_of_resnet() -> None:
    """At 32x32 the last maps are 1x1, of which nothing would be left; at 64x64 they are 2x2."""
    model = resnet18(nn.BatchNorm2d)
    with pytest.raises(ValueError, match=r"layer4\.0\.bn1: .*\(2, 512, 1, 1\) nothing would be left"):
        sn.convert_(model, to="instance", example_inputs=X)
    sn.convert_(model, to="instance", example_inputs=torch.randn(2, 3, 64, 64))
    assert not norms(model)


def test_timms_layer_with_an_activation() -> None:
    """It becomes ours with the activation inside, and timm's own again; a kind without activation is refused."""
    torch.manual_seed(0)
    model = timm().create_model("efficientnet_b0", num_classes=5)
    before, expected, kinds = state(model), outputs(model, X), [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"bn1: timm.*BatchNormAct2d: its activation would be lost"):
        sn.convert_(model, to="group")
    assert len(sn.convert_(model, to="steadynorm")) == 49
    assert {getattr(layer, "activation", None) for layer in norms(model)} == {"silu", None}
    same_state(model, before)
    torch.testing.assert_close(outputs(model, X), expected, rtol=1e-3, atol=1e-4)
    train_step(model)
    model.load_state_dict(before)
    sn.convert_(model, to="torch")
    assert [type(module) for module in model.modules()] == kinds
    assert torch.equal(outputs(model, X), expected)
    sn.freeze_(model)
    torch.testing.assert_close(outputs(model, X), expected, rtol=1e-3, atol=1e-4)
    sn.unfreeze_(model)
    assert torch.equal(outputs(model, X), expected)
    assert [type(module) for module in model.modules()] == kinds


def test_a_timm_layer_whose_activation_we_have_not() -> None:
    layer = timm().layers.BatchNormAct2d(4, act_layer=nn.ELU)
    with pytest.raises(ValueError, match="dropout or activation is none that a layer of ours applies"):
        sn.convert_(nn.Sequential(layer), to="steadynorm")


def test_layers_that_others_froze_are_kept() -> None:
    torchvision()
    from torchvision.ops import FrozenBatchNorm2d

    model = nn.Sequential(FrozenBatchNorm2d(3), nn.BatchNorm2d(3))
    changes = sn.convert_(model, to="sync")
    assert [str(change) for change in changes.kept] == [
        "0: torchvision.ops.misc.FrozenBatchNorm2d kept (frozen by its library)"
    ]
