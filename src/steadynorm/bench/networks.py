"""Whole steps of a ResNet: with our layers, with torch's, and without normalization."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import steadynorm as sn

from .cases import INFERENCE, LAST
from .processes import ask
from .providers import OURS, TORCH, Step

NONE = "no BN"
DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}


def steps(depth: int, batch: int, pixels: int, order: str, mode: str) -> dict[str, Step]:
    """A training step (forward, backward, SGD) or an inference of each variant."""
    return {variant: step(variant, depth, batch, pixels, order, mode) for variant in (OURS, TORCH, NONE)}


def step(variant: str, depth: int, batch: int, pixels: int, order: str, mode: str) -> Step:
    torch.manual_seed(0)
    layout = torch.channels_last if order == LAST else torch.contiguous_format
    network = ResNet(depth, variant).train(mode != INFERENCE)
    network.to(memory_format=layout)  # type: ignore[call-overload]
    images = torch.randn(batch, 3, pixels, pixels).contiguous(memory_format=layout)
    labels = torch.zeros(batch, dtype=torch.long)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)

    def inference() -> Tensor:
        with torch.no_grad():
            return network(images)

    def training() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()

    return inference if mode == INFERENCE else training


def peak_megabytes(variant: str, depth: int, batch: int, pixels: int) -> float | None:
    """Largest resident memory of a fresh process that does two training steps; None where only Linux would know."""
    told = ask({"what": "peak", "variant": variant, "depth": depth, "batch": batch, "pixels": pixels})
    return told["peak_megabytes"]


class ResNet(nn.Module):
    """He et al. 2016; ReLU in place after torch's layers, inside ours."""

    def __init__(self, depth: int, variant: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.norm = norm(variant, 64, relu=True)
        self.pool = nn.MaxPool2d(3, 2, 1)
        expansion = 4 if depth == 50 else 1
        blocks, channels = [], 64
        for stage, repeats in enumerate(DEPTHS[depth]):
            for index in range(repeats):
                stride = 2 if stage and not index else 1
                width = 64 << stage
                blocks.append(_Block(variant, channels, width, expansion, stride))
                channels = width * expansion
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(channels, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.pool(self.norm(self.stem(x)))).mean((2, 3)))


class _Block(nn.Module):
    def __init__(self, variant: str, channels: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        out = width * expansion
        sizes = [(channels, width, 1), (width, width, 3)] if expansion > 1 else [(channels, width, 3)]
        layers: list[nn.Module] = []
        for into, outof, kernel in sizes:
            step = stride if kernel == 3 else 1
            layers += [nn.Conv2d(into, outof, kernel, step, kernel // 2, bias=False), norm(variant, outof, relu=True)]
        last = 1 if expansion > 1 else 3
        layers.append(nn.Conv2d(width, out, last, 1, last // 2, bias=False))
        self.body = nn.Sequential(*layers)
        self.norm = norm(variant, out, relu=True)
        self.short = nn.Identity()
        if stride > 1 or channels != out:
            conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.short = nn.Sequential(conv, norm(variant, out, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.body(x), residual=self.short(x))


class _Torch(nn.Module):
    """torch's layer, or none, with what ours has inside."""

    def __init__(self, norm: nn.Module, relu: bool) -> None:
        super().__init__()
        self.norm, self.relu = norm, relu

    def forward(self, x: Tensor, *, residual: Tensor | None = None) -> Tensor:
        y = self.norm(x)
        if residual is not None:
            y = y + residual
        return torch.relu_(y) if self.relu else y


def norm(variant: str, channels: int, relu: bool) -> nn.Module:
    """A normalization, called with `residual=`: ours, or torch's followed by `y + residual` and ReLU in place."""
    if variant == OURS:
        return sn.BatchNorm2d(channels, activation="relu" if relu else None)
    return _Torch(nn.BatchNorm2d(channels) if variant == TORCH else nn.Identity(), relu)
