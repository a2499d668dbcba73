"""Running statistics: what a training step is asked to do with them, what it found, and how they move."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import BatchedStatisticsError
from ..moments import Moments
from . import readable


class Running(NamedTuple):
    """What a training step is asked to do beside normalizing.

    Attributes:
        mean: running mean (C,), or None.
        var: running variance (C,), or None; both move towards the batch's, or neither.
        momentum: weight of the batch in them, in [0, 1]; a number or a 0-d tensor.
        moves: whether they move.
        guarded: they stay where the batch's mean or variance is not finite.
        collects: the batch's moments are wanted, instead of moving them.
        batches: number of batches so far, 0-d, which is to grow by one; whoever cannot count leaves it to the layer.
    """

    mean: Tensor | None = None
    var: Tensor | None = None
    momentum: float | Tensor = 0.1
    moves: bool = True
    guarded: bool = False
    collects: bool = False
    batches: Tensor | None = None


class Outcome(NamedTuple):
    """What a step found beside y.

    Attributes:
        finite: whether the batch's moments were finite; True where no running statistic was to move, or nobody looked.
        batch: the batch's moments (1, C) where they are wanted.
        untouched: whether the batch had one value a channel, and the running statistics normalized it.
        counted: whether `Running.batches` has grown.
    """

    finite: bool = True
    batch: Moments | None = None
    untouched: bool = False
    counted: bool = False


FINE, POISONED, UNTOUCHED = Outcome(), Outcome(finite=False), Outcome(untouched=True)


def settle(who: object, running: Running, parts: Moments) -> Outcome:
    """Moves the running statistics towards the moments of all parts (K, C) together, or hands these over as (1, C)."""
    if running.collects:
        return Outcome(batch=parts.union(keepdim=True))
    return update(who, running, parts.union(keepdim=True)) if running.moves else FINE


def update(who: object, running: Running, batch: Moments) -> Outcome:
    """Moves the running statistics towards the batch's moments (1, C), in their float64, rounded once.

    Both move, or neither if one cannot be written. Channels of fewer than two values keep theirs. Guarded statistics
    stay where a moment is not finite.
    """
    if running.mean is None or running.var is None:
        return FINE
    pairs = ((running.mean, batch.mean[0]), (running.var, batch.var_unbiased[0]))
    return move(who, running, pairs, batch.count[0] > 1, (batch.mean.isfinite() & batch.m2.isfinite()).all())


def move(
    who: object,
    running: Running,
    pairs: tuple[tuple[Tensor, Tensor], ...],
    real: Tensor | None,
    finite: Tensor,
) -> Outcome:
    """Moves running statistics towards a batch's, all of them or none, in the dtype of the batch's.

    Args:
        who: the name that error messages begin with.
        running: the momentum, and whether a guard keeps out what is not finite.
        pairs: each running statistic, and the batch's.
        real: where the batch's is one, bool; None for everywhere.
        finite: bool, 0-d, whether all of the batch's are finite.
    """
    if running.guarded:
        real = finite if real is None else real & finite
    moved: list[tuple[Tensor, Tensor]] = []
    try:
        for kept, new in pairs:
            old = kept.to(new.dtype, copy=True)
            mixed = old * (1 - running.momentum) + new.detach() * running.momentum
            moved.append((kept, old))
            kept.copy_(mixed if real is None else torch.where(real, mixed, old))
    except RuntimeError as error:
        for kept, old in moved:
            with torch.inference_mode(kept.is_inference()):  # torch refuses to write to it after it has written
                kept.copy_(old)
        if "vmap" not in str(error):
            raise
        raise BatchedStatisticsError(
            f"{who}: expected running statistics for each of vmap's examples, got one set that all would update. "
            "Stack them (torch.func.stack_module_state), or build the layer with track_running_stats=False."
        ) from error
    return POISONED if readable(finite) and not finite else FINE
