"""Inference of whole networks: with torch's norms, folded by us, by torch.fx, compiled, and without any norm."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

import steadynorm as sn

from .cases import FIRST, LAST
from .networks import NONE, ResNet
from .providers import COMPILED, TORCH, Step

FOLDED, FUSED, FOLDED_COMPILED = "folded", "torch.fx fuse", "folded, torch.compile"


def keys(quick: bool) -> list[dict[str, Any]]:
    """What to time."""
    settings = [("ResNet-18", 8, 96)] if quick else [("ResNet-50", 16, 160), ("MobileNet", 16, 160)]
    return [
        {"network": network, "batch": batch, "pixels": pixels, "order": order}
        for network, batch, pixels in settings
        for order in (FIRST, LAST)
    ]


def steps(network: str, batch: int, pixels: int, order: str, compiles: bool = True) -> dict[str, Step]:
    """One inference each; torch.compile, which takes its time, only if asked for."""
    layout = torch.channels_last if order == LAST else torch.contiguous_format
    images = torch.randn(batch, 3, pixels, pixels, generator=torch.Generator().manual_seed(0))
    images = images.contiguous(memory_format=layout)
    plain, none = (_build(network, variant).to(memory_format=layout) for variant in (TORCH, NONE))  # type: ignore[call-overload]
    folded = sn.fold(plain, images[:1]).model
    models: dict[str, Any] = {FOLDED: folded, TORCH: plain, NONE: none, FUSED: _fuse(plain)}
    if compiles:
        models |= {COMPILED: torch.compile(plain), FOLDED_COMPILED: torch.compile(folded)}

    def step(model: Any) -> Step:
        def run() -> Tensor:
            with torch.no_grad():
                return model(images)

        return run

    return {name: step(model) for name, model in models.items()}


def _build(network: str, variant: str) -> nn.Module:
    """In eval mode, with statistics as if trained."""
    torch.manual_seed(0)
    model = MobileNet(variant) if network == "MobileNet" else ResNet(int(network.removeprefix("ResNet-")), variant)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.get_buffer("running_mean").normal_(0, 0.1)
            layer.get_buffer("running_var").uniform_(0.5, 2)
    return model.eval()


def _fuse(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # importing it warns of torch.jit
        from torch.fx.experimental.optimization import fuse
    return fuse(model)


class MobileNet(nn.Module):
    """Inverted residuals as in Sandler et al. 2018 (arXiv:1801.04381), with its widths: depthwise convolutions."""

    STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, variant: str) -> None:
        super().__init__()
        layers, channels = [_conv(variant, 3, 32, 3, 2)], 32
        for expansion, out, repeats, stride in self.STAGES:
            for index in range(repeats):
                layers.append(_Inverted(variant, channels, out, expansion, 1 if index else stride))
                channels = out
        self.layers = nn.Sequential(*layers, _conv(variant, channels, 1280, 1))
        self.head = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3)))


class _Inverted(nn.Module):
    def __init__(self, variant: str, channels: int, out: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = channels * expansion
        wider = [_conv(variant, channels, wide, 1)] if expansion > 1 else []
        depthwise = _conv(variant, wide, wide, 3, stride, groups=wide)
        self.body = nn.Sequential(*wider, depthwise, _conv(variant, wide, out, 1, relu=False))
        self.adds = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def _conv(
    variant: str, channels: int, out: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Module:
    conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    norm = nn.BatchNorm2d(out) if variant == TORCH else nn.Identity()
    return nn.Sequential(conv, norm, *([nn.ReLU6(inplace=True)] if relu else []))
