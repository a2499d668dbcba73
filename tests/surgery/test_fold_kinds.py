"""Every kind of norm is folded, with what comes after its affine map; whitening too, and 16 bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadynorm as sn

from ..support.foldable import randomised
from ..support.models import timm, torchvision
from .test_fold_pairs import close, gone, normalized

EPILOGUES = ["relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "sigmoid", "tanh"]


@pytest.mark.parametrize("activation", EPILOGUES)
def test_activations_inside_our_layers_stay(activation: str) -> None:
    layers = nn.Conv2d(3, 4, 3), sn.BatchNorm2d(4, activation=activation, negative_slope=0.3)
    model = randomised(nn.Sequential(*layers)).double()
    x = torch.randn(2, 3, 6, 6).double()
    folded = sn.fold(model, x)
    gone(folded, "1")
    close(folded.model(x), model(x))
    before = sn.fold(
        randomised(nn.Sequential(layers[1], nn.Conv2d(4, 4, 1))).double(), torch.randn(2, 4, 3, 3).double()
    )
    assert "its activation or residual comes before the next layer" in before.kept[0].reason


class WithResidual(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), norm

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.norm(self.conv(x), residual=x, mask=mask)


@pytest.mark.parametrize("activation", [None, "relu"])
def test_residuals_are_still_added(activation: str | None) -> None:
    model = randomised(WithResidual(sn.BatchNorm2d(3, activation=activation))).double()
    x = torch.randn(2, 3, 6, 6).double()
    folded = sn.fold(model, x)
    gone(folded, "norm")
    close(folded.model(x), model(x))
    with pytest.raises(ValueError, match="AddThen: expected no mask, got one, for a norm that was folded with an exam"):
        folded.model(x, mask=torch.ones(2, 6, 6, dtype=torch.bool))


def test_masked_norms_are_kept() -> None:
    model = randomised(WithResidual(sn.BatchNorm2d(3))).double()
    x, mask = torch.randn(2, 3, 6, 6).double(), torch.rand(2, 6, 6) < 0.5
    folded = sn.fold(model, {"x": x, "mask": mask})
    gone(folded)
    assert folded.kept[0].reason == "it is given a mask"
    close(folded.model(x, mask), model(x, mask))


KINDS = {
    "torch": lambda: nn.BatchNorm2d(6),
    "torch, synchronized": lambda: nn.SyncBatchNorm(6),
    "synchronized": lambda: sn.SyncBatchNorm(6),
    "ghost": lambda: sn.GhostBatchNorm2d(6, 2),
    "renorm": lambda: sn.BatchRenorm2d(6),
    "frozen": lambda: sn.FrozenBatchNorm(6),
    "frozen without affine": lambda: sn.FrozenBatchNorm(6, affine=False),
    "torchvision, frozen": lambda: torchvision().ops.FrozenBatchNorm2d(6),
    "timm": lambda: timm().layers.BatchNormAct2d(6),
    "timm, frozen": lambda: timm().layers.FrozenBatchNormAct2d(6),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_norm(kind: str) -> None:
    norm = randomised(KINDS[kind]())
    x = torch.randn(3, 4, 6, 6).double()
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), norm).double().eval()
    folded = sn.fold(model, x)
    gone(folded, "1")
    y = normalized(model[0](x), norm)
    close(folded.model(x), y.relu() if "timm" in kind else y)
    if "timm" not in kind:
        model = nn.Sequential(norm, nn.Conv2d(6, 4, 3)).double().eval()
        x = torch.randn(3, 6, 6, 6).double()
        folded = sn.fold(model, x)
        gone(folded, "0")
        close(folded.model(x), model[1](normalized(x, norm)))


def whitening(method: str, group_size: int) -> sn.WhiteningBatchNorm:
    layer = sn.WhiteningBatchNorm(8, group_size, method, momentum=1.0).double()
    nn.init.uniform_(layer.weight, 0.5, 1.5)  # type: ignore[arg-type]
    nn.init.normal_(layer.bias)  # type: ignore[arg-type]
    mixed = torch.einsum("nchw,cd->ndhw", torch.randn(64, 8, 3, 3).double(), torch.randn(8, 8).double()) + 1
    layer(mixed)
    return layer.eval()


@pytest.mark.parametrize("method", ["iternorm", "zca"])
@pytest.mark.parametrize(
    ("group_size", "before", "folds"),
    [
        (8, nn.Conv2d(3, 8, 3), True),
        (4, nn.Conv2d(4, 8, 3, groups=2), True),
        (2, nn.ConvTranspose2d(4, 8, 3, 2, groups=2), True),
        (8, nn.Conv2d(4, 8, 3, groups=2), False),
        (2, nn.Conv2d(8, 8, 3, groups=8), False),
    ],
)
def test_whitening(method: str, group_size: int, before: Any, folds: bool) -> None:
    """The matrix goes where the channels that it mixes are mixed anyway; the layer's own forward is the oracle."""
    torch.manual_seed(0)
    layer = whitening(method, group_size)
    before = before.double()
    x = torch.randn(2, before.in_channels, 6, 6).double()
    folded = sn.fold(nn.Sequential(before, layer).eval(), x)
    gone(folded, *(["1"] if folds else []))
    close(folded.model(x), layer(before(x)))
    after = nn.Sequential(layer, nn.Conv2d(8, 6, 3, groups=2)).double().eval()
    x = torch.randn(2, 8, 6, 6).double()
    folded = sn.fold(after, x)
    gone(folded, *([] if group_size == 8 else ["0"]))
    close(folded.model(x), after(x))


def test_whitening_and_linear() -> None:
    layer = whitening("zca", 4)
    model = nn.Sequential(nn.Linear(5, 8), layer, nn.ReLU(), layer, nn.Flatten(), nn.Linear(8, 3)).double().eval()
    x = torch.randn(4, 5).double()
    gone(sn.fold(model, x))  # called twice, once after the ReLU
    model = nn.Sequential(layer, nn.Linear(8, 3)).double().eval()
    x = torch.randn(4, 8).double()
    folded = sn.fold(model, x)
    gone(folded, "0")
    close(folded.model(x), model[1](layer(x)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("library", [nn, sn])
def test_sixteen_bits_are_rounded_once(dtype: torch.dtype, library: Any) -> None:
    """The new weight is what float64 gives, to half a unit in the last place."""
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), library.BatchNorm2d(4))).to(dtype)
    folded = sn.fold(model, torch.randn(2, 3, 6, 6, dtype=dtype))
    conv, norm = list[Any](model.children())
    scale = norm.weight.double() / torch.sqrt(norm.running_var.double() + norm.eps)
    exact = conv.weight.double() * scale.reshape(-1, 1, 1, 1)
    assert folded.model[0].weight.dtype == dtype  # type: ignore[index,union-attr]
    assert torch.equal(folded.model[0].weight, exact.to(dtype))  # type: ignore[index,union-attr]


def test_memory_order_and_device_are_kept() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    weight = sn.fold(model, torch.randn(2, 3, 6, 6)).model[0].weight  # type: ignore[index]
    assert weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr]
    assert not weight.is_contiguous()  # type: ignore[union-attr]
