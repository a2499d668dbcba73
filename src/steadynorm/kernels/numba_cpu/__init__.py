"""The six functions as compiled kernels for CPU tensors: float32, float64, bfloat16 and float16, in both memory orders.

Elements are computed in float32 (float64 for float64), sums of them in blocks that float64 adds up, statistics in
float64. Results are the same bits whatever the number of threads.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from ...moments import Moments
from .. import Apply, Gradients
from ..running import Running
from . import entries
from .compiling import cache_folder, numba_version
from .launching import Memory, as_statistics, launch
from .threads import pool
from .tiling import Tiling, tiling

__all__ = [
    "backward",
    "cache_folder",
    "forward",
    "input_grad",
    "moments",
    "normalize",
    "numba_version",
    "pool",
    "reduce_grad",
    "train",
    "train_backward",
    "unpack_signs",
]

PLAIN = Apply(None, None, 0.0)


def moments(x: Tensor, mask: Tensor | None = None, groups: int = 1) -> Moments:
    x = _dense(x)
    return _measure(x, _cut(x, groups), PLAIN._replace(mask=mask), None)


def normalize(x: Tensor, mean: Tensor, var: Tensor, apply: Apply, groups: int = 1) -> Tensor:
    x = _dense(x)
    y = torch.empty_like(x)
    launch(entries.forward, x, _cut(x, groups, fused=False), apply, Memory(y=y, mean=mean, var=var), applies=True)
    return y


def forward(x: Tensor, apply: Apply, groups: int = 1) -> tuple[Tensor, Moments]:
    x = _dense(x)
    y = torch.empty_like(x)
    return y, _measure(x, _cut(x, groups), apply, y)


def reduce_grad(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, apply: Apply, groups: int = 1
) -> tuple[Tensor, Tensor]:
    x = _dense(x)
    return _reduce(x, _cut(x, groups), apply, Memory(dy=dy, mean=mean, var=var))


def input_grad(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    apply: Apply,
    sums: tuple[Tensor, Tensor] | None = None,
    count: Tensor | None = None,
    groups: int = 1,
) -> tuple[Tensor, Tensor | None]:
    x = _dense(x)
    dx, dresidual = torch.empty_like(x), _empty_dresidual(x, apply)
    cut = _cut(x, groups)
    first, second = (None, None) if sums is None else (as_statistics(t, cut) for t in sums)
    memory = Memory(dy, dx, dresidual, None if sums is None else count, first, second, mean=mean, var=var)
    launch(entries.backward, x, cut, apply, memory, applies=True)
    return dx, dresidual


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    apply: Apply,
    count: Tensor | None = None,
    groups: int = 1,
) -> Gradients:
    x = _dense(x)
    dx, dresidual = torch.empty_like(x), _empty_dresidual(x, apply)
    memory = Memory(dy, dx, dresidual, count, mean=mean, var=var)
    sum_dz, sum_dz_xhat = _reduce(x, _cut(x, groups), apply, memory)
    return Gradients(dx, sum_dz_xhat, sum_dz, dresidual)


def train(x: Tensor, apply: Apply, running: Running) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """`forward` of one group that moves the running statistics too, contiguous (C,) of one dtype, or both None.

    Returns:
        y; count, mean, m2 and variance, float64 (4, C); None for no signs; and whether the moments are finite.
    """
    running_mean, running_var = (running.mean, running.var) if running.moves else (None, None)
    x = _dense(x)
    y, cut = torch.empty_like(x), _cut(x, 1)
    statistics = _statistics(4, cut.channels)
    partial, counts = _parts(cut)
    count, mean, m2, variance = _lines(statistics)
    memory = Memory(
        y=y,
        shared=count,
        first=mean,
        second=m2,
        variance=variance,
        partial=partial,
        counts=counts,
        running_mean=running_mean,
        running_var=running_var,
        momentum=float(running.momentum),
        guarded=running.guarded,
    )
    finite = launch(entries.forward, x, cut, apply, memory, measures=True, applies=True)
    if running_mean is not None and running_var is not None:
        torch.autograd.graph.increment_version((running_mean, running_var))
    return y, statistics, None, finite


def train_backward(
    dy: Tensor, x: Tensor, statistics: Tensor, apply: Apply, signs: Tensor | None = None, wants_dx: bool = True
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """`backward` of what `train` gave: dx; dweight and dbias, of their parameters' shape and dtype; dresidual.

    Without a residual, dx need not be wanted.
    """
    x, statistics = _dense(x), statistics.double().contiguous()
    dresidual, cut = _empty_dresidual(x, apply), _cut(x, 1)
    dx = torch.empty_like(x) if wants_dx or dresidual is not None else None
    dweight, dbias = (None if values is None else torch.empty_like(values) for values in (apply.weight, apply.bias))
    sums = _statistics(2, cut.channels)
    count, mean, _, variance = _lines(statistics)
    first, second = _lines(sums)
    memory = Memory(
        dy,
        dx,
        dresidual,
        count,
        first,
        second,
        partial=_parts(cut)[0],
        mean=mean,
        var=variance,
        dweight=dweight,
        dbias=dbias,
    )
    launch(entries.backward, x, cut, apply, memory, measures=True, applies=dx is not None)
    return dx, dweight, dbias, dresidual


def unpack_signs(signs: Tensor, x: Tensor) -> Tensor:
    raise NotImplementedError("no signs are kept here")


# ---- a pass ----


def _measure(x: Tensor, cut: Tiling, apply: Apply, y: Tensor | None) -> Moments:
    """The moments; and y, if there is memory for it."""
    count, mean, m2 = (_statistics(cut.groups, cut.channels) for _ in range(3))
    partial, counts = _parts(cut)
    memory = Memory(y=y, shared=count, first=mean, second=m2, partial=partial, counts=counts)
    launch(entries.forward, x, cut, apply, memory, measures=True, applies=y is not None)
    return Moments(count, mean, m2)


def _reduce(x: Tensor, cut: Tiling, apply: Apply, memory: Memory) -> tuple[Tensor, Tensor]:
    """The sums of dz and of dz * xhat; and dx and dresidual, if there is memory for them."""
    sums = _statistics(cut.groups, cut.channels), _statistics(cut.groups, cut.channels)
    memory = memory._replace(first=sums[0], second=sums[1], partial=_parts(cut)[0])
    launch(entries.backward, x, cut, apply, memory, measures=True, applies=memory.y is not None)
    return sums


def _parts(cut: Tiling) -> tuple[Tensor | None, Tensor | None]:
    """Memory for the statistics of parts, if tiles have several: what is summed, and counts."""
    if cut.parts == 1:
        return None, None
    return _statistics(cut.groups, cut.parts, 2, cut.channels), _statistics(cut.groups, cut.parts)


# ---- shapes ----


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous() or x.movedim(1, -1).is_contiguous() else x.contiguous()


def _cut(x: Tensor, groups: int, fused: bool = True) -> Tiling:
    return _cut_shape(tuple(x.shape), groups, x.is_contiguous(), fused)


@lru_cache(maxsize=4096)
def _cut_shape(shape: tuple[int, ...], groups: int, channels_first: bool, fused: bool) -> Tiling:
    examples, channels, *rest = shape
    length = math.prod(rest)
    return tiling(groups, examples // groups, channels, length, length == 1 or not channels_first, fused)


def _lines(statistics: Tensor) -> list[int]:
    """Addresses of the lines of a float64 matrix."""
    lines, columns = statistics.shape
    first = statistics.data_ptr()
    return [first + line * columns * 8 for line in range(lines)]


def _statistics(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64)


def _empty_dresidual(x: Tensor, apply: Apply) -> Tensor | None:
    return None if apply.residual is None else torch.empty_like(x)
