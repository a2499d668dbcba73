"""What masks, control of statistics, and the relatives of batch normalization cost beside the plain layer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

import steadynorm as sn

from .cases import FIRST, LAST
from .providers import OURS, Step

SHAPES = [(32, 64, 56, 56), (32, 256, 14, 14)]
SYNC, GHOST = "SyncBatchNorm, one rank", "GhostBatchNorm, 4 ghosts"
RENORM, FROZEN = "BatchRenorm, r to 3, d to 5", "FrozenBatchNorm"
MASK, HELD, GUARDED = "mask, 3 of 4 real", "hold_statistics", "guard_statistics"


def keys(quick: bool) -> list[dict[str, Any]]:
    """What to time: shape and order."""
    shapes = SHAPES[1:] if quick else SHAPES
    return [{"shape": list(shape), "order": order} for shape in shapes for order in (FIRST, LAST)]


def steps(shape: list[int], order: str) -> dict[str, Step]:
    """Forward and backward, float32, with ReLU, of the plain layer and of each relative."""
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if order == LAST else torch.contiguous_format
    x, dy = (torch.randn(shape, generator=generator).contiguous(memory_format=layout) for _ in range(2))
    x.requires_grad_()
    examples, channels, *rest = shape
    mask = torch.rand(examples, *rest, generator=generator) < 0.75

    def step(layer: nn.Module, within: Callable[[], AbstractContextManager] = nullcontext, **given: Any) -> Step:
        wanted = (x, *layer.parameters())

        def run() -> object:
            with within():
                return torch.autograd.grad(layer(x, **given), wanted, dy)

        return run

    held, guarded = (sn.BatchNorm2d(channels, activation="relu") for _ in range(2))
    return {
        OURS: step(sn.BatchNorm2d(channels, activation="relu")),
        MASK: step(sn.BatchNorm2d(channels, activation="relu"), mask=mask),
        HELD: step(held, lambda: sn.hold_statistics(held)),
        GUARDED: step(guarded, lambda: sn.guard_statistics(guarded)),
        SYNC: step(sn.SyncBatchNorm(channels, activation="relu")),
        GHOST: step(sn.GhostBatchNorm2d(channels, examples // 4, activation="relu")),
        RENORM: step(sn.BatchRenorm2d(channels, rmax=3, dmax=5, activation="relu")),
        FROZEN: step(sn.FrozenBatchNorm(channels, activation="relu")),
    }
