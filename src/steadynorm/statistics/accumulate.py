"""Running statistics of several micro-batches move as if they were one batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import InvalidArgumentError
from ..kernels import readable
from ..kernels.running import Running, update
from ..moments import Moments
from ..nn.batchnorm import _BatchNorm
from ..walk import own_batch_norms


@contextmanager
def accumulate_statistics(model: nn.Module, k: int) -> Iterator[None]:
    """In the context, running statistics move once for every k micro-batches, by the moments of all their values.

    Without it, gradient accumulation over k micro-batches moves them k times, each time by the variance of a small
    batch, and at k times the intended speed. **Only the running statistics** are those of the joint batch: each forward
    still normalizes by its own micro-batch. What is left when the context ends, fewer than k, moves them once more;
    when it ends by an exception, it is dropped. A layer that is called twice a micro-batch counts two. A micro-batch
    that a guard keeps out is left out of the joint batch.

    Args:
        model: any model; its layers that are not steadynorm's are refused.
        k: micro-batches a step, at least 1.

    Raises:
        InvalidArgumentError (a ValueError): k below 1, no batch normalization layer, or one of torch's own.

    Example::

        with sn.accumulate_statistics(model, 4):
            for step, (x, y) in enumerate(micro_batches):
                (loss(model(x), y) / 4).backward()
                if step % 4 == 3:
                    optimizer.step()
                    optimizer.zero_grad()
    """
    who = "accumulate_statistics"
    if not isinstance(k, int) or k < 1:
        raise InvalidArgumentError(f"{who}: expected k >= 1 micro-batches a step, a whole number, got {k!r}.")
    layers = own_batch_norms(who, model)
    for name, layer in layers.items():
        if layer._collector is not None:
            raise InvalidArgumentError(f"{who}: {name!r} accumulates already. Leave the other context first.")
    waiting = _Waiting(k)
    try:
        for layer in layers.values():
            layer._collector = waiting  # type: ignore[assignment]
        yield
        waiting.flush()
    finally:
        for layer in layers.values():
            del layer._collector


class _Waiting:
    """The moments of micro-batches, by layer, that have not moved its statistics yet."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.parts: dict[Any, list[Moments | None]] = {}

    def __call__(self, layer: _BatchNorm, batch: Moments) -> None:
        parts = self.parts.setdefault(layer, [])
        kept_out = layer._guard is not None and readable(batch.mean) and not _is_finite(batch)
        parts.append(None if kept_out else batch)
        if len(parts) == self.k:
            move(layer, self.parts.pop(layer))
        if kept_out and layer._guard is not None:
            layer._guard(layer)

    def flush(self) -> None:
        while self.parts:
            move(*self.parts.popitem())


def _is_finite(batch: Moments) -> bool:
    return bool((batch.mean.isfinite() & batch.m2.isfinite()).all())


@torch.no_grad()
def move(layer: _BatchNorm, parts: list[Moments | None]) -> None:
    """Moves a layer's running statistics by the moments (1, C) of all parts but those kept out, as a forward would."""
    real = [part for part in parts if part is not None]
    if not real:
        return
    batch = Moments.merge(real)
    running = Running(layer.running_mean, layer.running_var, layer._momentum(), guarded=layer._guard is not None)
    layer._after(update(layer._speaker(), running, batch))
