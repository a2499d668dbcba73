"""Whether another layer can take a batch normalization's place."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from .batchnorm import _BatchNorm


def is_uninitialized(layer: nn.Module) -> bool:
    """Whether it is a lazy layer that has not seen its first input."""
    return any(map(is_lazy, (*layer.parameters(), *layer.buffers())))


def has_known_forward(layer: nn.modules.batchnorm._BatchNorm, steps: Container[Any]) -> bool:
    """Whether it runs torch's forward, or ours with one of the `steps`: not one of a subclass's own, or of a patch."""
    forward = getattr(layer.forward, "__func__", None)
    if isinstance(layer, _BatchNorm):
        return forward is _BatchNorm.forward and type(layer)._step in steps
    return forward in (nn.modules.batchnorm._BatchNorm.forward, nn.SyncBatchNorm.forward)


def dimensions(layer: nn.Module) -> int | None:
    """1, 2 or 3 for BatchNorm1d, 2d, 3d of torch's and what derives from them; what a SyncBatchNorm remembers."""
    for number, kind in enumerate((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), 1):
        if isinstance(layer, kind):
            return number
    return getattr(layer, "_dimensions", None)
