"""The statistics of a whole population: measured part by part, merged exactly, in float64."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..inputs import as_mask, dense
from ..moments import Moments
from ..nn import whitening
from ..nn.batchnorm import _BatchNorm

ESTIMATORS = ("pooled", "paper")


@dataclass(frozen=True)
class Comoments(Moments):
    """Moments whose m2 (G, d, d) holds products of channels too, of G groups of d; count and mean are (C,)."""

    def union(self, keepdim: bool = False) -> Comoments:
        """As that of `Moments`: squares of distances between means become products of them."""
        pooled = Moments(self.count, self.mean, torch.zeros_like(self.mean)).union(keepdim)
        apart = (self.mean - pooled.mean).reshape(*self.m2.shape[:3], 1)
        between = self.count[:, :1, None, None] * (apart @ apart.mT)
        return Comoments(pooled.count, pooled.mean, (self.m2 + between).sum(0, keepdim))


@dataclass(frozen=True)
class Population:
    """What all batches of a layer hold together.

    Attributes:
        pooled: moments of all values, (C,).
        within: sum over batches of squared distances from the batch's own mean, of the shape of pooled.m2.
        degrees: sum over batches of their values less one, (C,).
        batches: how many there were.
    """

    pooled: Moments
    within: Tensor
    degrees: Tensor
    batches: int = 1

    @classmethod
    def of_batch(cls, batch: Moments) -> Population:
        return cls(batch, batch.m2, (batch.count - 1).clamp(min=0))

    @staticmethod
    def merge(parts: Iterable[Population]) -> Population:
        """The union of at least one part."""
        parts = list(parts)
        kind = type(parts[0].pooled)
        count, mean, m2 = (torch.stack([getattr(part.pooled, name) for part in parts]) for name in _FIELDS)
        within = torch.stack([part.within for part in parts]).sum(0)
        degrees = torch.stack([part.degrees for part in parts]).sum(0)
        return Population(kind(count, mean, m2).union(), within, degrees, sum(part.batches for part in parts))

    def estimate(self, estimator: str) -> tuple[Tensor, Tensor]:
        """Mean (C,) and unbiased variance (C,) or covariance (G, d, d)."""
        squares, degrees = (
            (self.pooled.m2, self.pooled.count - 1) if estimator == "pooled" else (self.within, self.degrees)
        )
        return self.pooled.mean, squares / (degrees if squares.dim() == 1 else degrees[:1]).clamp(min=1)

    def packed(self) -> Tensor:
        """All of it in one row of numbers, which another rank can unpack."""
        batches = self.degrees.new_full((1,), self.batches)
        parts = (self.pooled.count, self.pooled.mean, self.pooled.m2, self.within, self.degrees, batches)
        return torch.cat([part.flatten() for part in parts])

    def unpacked(self, row: Tensor) -> Population:
        """What `packed` made of a population of the same layer."""
        like = (self.pooled.count, self.pooled.mean, self.pooled.m2, self.within, self.degrees)
        *parts, batches = row.split([*(part.numel() for part in like), 1])
        count, mean, m2, within, degrees = (part.reshape(old.shape) for part, old in zip(parts, like, strict=True))
        return Population(type(self.pooled)(count, mean, m2), within, degrees, int(batches))


_FIELDS = ("count", "mean", "m2")


def variances(spread: Tensor) -> Tensor:
    """(C,), of a variance (C,) or a covariance (G, d, d)."""
    return spread if spread.dim() == 1 else spread.diagonal(dim1=1, dim2=2).flatten()


def measured(layer: nn.Module, x: Any, mask: Any) -> Moments | None:
    """Moments (C,) of the real elements of what a layer is given; None for what it will refuse."""
    if not isinstance(x, Tensor) or x.dim() < 2 or not x.is_floating_point() or x.shape[1] != layer.num_features:
        return None
    if not isinstance(layer, _BatchNorm):
        mask = None
    elif mask is not None:
        mask = as_mask(layer._speaker(), mask, x)
    x = dense(x)
    with torch.autocast(x.device.type, enabled=False):  # which would multiply matrices in 16 bits
        if isinstance(layer, whitening.WhiteningBatchNorm):
            return _comoments(x, mask, layer.group_size)
        found = ops.moments(x, mask)
    return Moments(found.count[0], found.mean[0], found.m2[0])


def _comoments(x: Tensor, mask: Tensor | None, size: int) -> Comoments:
    data = whitening._by_groups(x, size)
    count = data.shape[2] if mask is None else mask.sum()
    sample = whitening._measure(data, None if mask is None else mask.flatten(), count)
    mean = sample.mean.flatten()
    number = torch.zeros_like(mean) + count
    return Comoments(number, mean, sample.covariance * number[:1])
