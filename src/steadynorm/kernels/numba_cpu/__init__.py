"""The six functions as compiled kernels for CPU tensors: float32, float64, bfloat16 and float16, in both memory orders.

Kernels see memory, not shapes: with `groups`, `normalize`, `forward` and `backward` take natural tensors
(groups * N, C, *) as well as canonical ones.

Elements are computed in float32 (float64 for float64), sums of them in blocks that float64 adds up, statistics in
float64. Results are the same bits whatever the number of threads.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...moments import Moments
from .. import Apply, Gradients
from . import entries, row_kernels
from .call import PACK, PACK_UPDATE, PACK_VERDICT
from .coefficients import CODES
from .compiling import cache_folder, numba_version
from .elements import SMOOTH, STORED
from .row_kernels import Variant
from .threads import pool, run
from .tiling import Tiling, tiling

NAMES = {getattr(torch, name): name for name in STORED}
"""Dtypes the kernels know, and what they call them."""
__all__ = [
    "accepts",
    "backward",
    "cache_folder",
    "forward",
    "input_grad",
    "moments",
    "normalize",
    "numba_version",
    "pool",
    "reduce_grad",
    "update_running",
]

VALUES_A_THREAD = 1 << 15
"""Values that take longer to compute than a further thread takes to wake."""
PLAIN = Apply(None, None, 0.0)


class Memory(NamedTuple):
    """What a pass reads beside x, and writes: see `call.ADDRESSES`, where `shared` is count."""

    dy: Tensor | None = None
    y: Tensor | None = None
    dresidual: Tensor | None = None
    shared: Tensor | None = None
    first: Tensor | None = None
    second: Tensor | None = None
    partial: Tensor | None = None
    counts: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None


def moments(x: Tensor, mask: Tensor | None = None) -> Moments:
    x = _dense(x)
    return _measure(x, _cut(x), PLAIN._replace(mask=mask), None)


def normalize(x: Tensor, mean: Tensor, var: Tensor, apply: Apply, groups: int | None = None) -> Tensor:
    x = _dense(x, groups)
    y = torch.empty_like(x)
    _launch(entries.forward, x, _cut(x, groups, fused=False), apply, Memory(y=y, mean=mean, var=var), applies=True)
    return y


def forward(x: Tensor, apply: Apply, groups: int | None = None) -> tuple[Tensor, Moments]:
    x = _dense(x, groups)
    y = torch.empty_like(x)
    return y, _measure(x, _cut(x, groups), apply, y)


def reduce_grad(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, apply: Apply) -> tuple[Tensor, Tensor]:
    x = _dense(x)
    return _reduce(x, _cut(x), apply, Memory(dy=dy, mean=mean, var=var))


def input_grad(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    apply: Apply,
    sums: tuple[Tensor, Tensor] | None = None,
    count: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    x = _dense(x)
    dx, dresidual = torch.empty_like(x), _empty_dresidual(x, apply)
    first, second = (None, None) if sums is None else (_as_statistics(t, _cut(x)) for t in sums)
    memory = Memory(dy, dx, dresidual, count, first, second, mean=mean, var=var)
    _launch(entries.backward, x, _cut(x), apply, memory, applies=True)
    return dx, dresidual


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    apply: Apply,
    count: Tensor | None = None,
    groups: int | None = None,
) -> Gradients:
    x = _dense(x, groups)
    dx, dresidual = torch.empty_like(x), _empty_dresidual(x, apply)
    memory = Memory(dy, dx, dresidual, count, mean=mean, var=var)
    sum_dz, sum_dz_xhat = _reduce(x, _cut(x, groups), apply, memory)
    return Gradients(dx, sum_dz_xhat, sum_dz, dresidual)


def update_running(running_mean: Tensor, running_var: Tensor, batch: Moments, momentum: float) -> None:
    """Moves contiguous running statistics (C,), both float32 or float64, towards a batch's, (1, C), in place."""
    addresses = running_mean.data_ptr(), running_var.data_ptr(), running_mean.dtype == torch.float64
    moments = batch.count.data_ptr(), batch.mean.data_ptr(), batch.m2.data_ptr()
    told = PACK_UPDATE.pack(*addresses, *moments, running_mean.shape[0], momentum)
    run(entries.update(), told, 1)
    torch.autograd.graph.increment_version((running_mean, running_var))


def accepts(
    mean: Tensor,
    invstd: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    values: int,
    eps: float,
    momentum: float,
) -> bool:
    """Whether torch's own operator is exact, by the float32 statistics (C,) that it took of so many values.

    If so, moves the running statistics, float32 (C,) or both None. For 0 values they are running statistics themselves,
    and `invstd` is the variance.
    """
    told = ctypes.create_string_buffer(PACK_VERDICT.size)
    channels = mean.shape[0]
    addresses = mean.data_ptr(), invstd.data_ptr(), _address(running_mean), _address(running_var)
    PACK_VERDICT.pack_into(told, 0, 0, *addresses, channels, values / channels, eps, momentum)
    run(entries.judge(), told, 1)
    accepted = told[0] == b"\x01"
    if accepted and running_mean is not None and running_var is not None:
        torch.autograd.graph.increment_version((running_mean, running_var))
    return accepted


# ---- a pass: one launch where tiles have one part; else one for the parts, one that merges them, one for the rest ----


def _measure(x: Tensor, cut: Tiling, apply: Apply, y: Tensor | None) -> Moments:
    """The moments; and y, if there is memory for it."""
    count, mean, m2 = (_statistics(cut.groups, cut.channels) for _ in range(3))
    memory = Memory(y=y, shared=count, first=mean, second=m2)
    found = Moments(count, mean, m2)
    if cut.parts == 1:
        _launch(entries.forward, x, cut, apply, memory, measures=True, applies=y is not None)
        return found
    memory = memory._replace(
        partial=_statistics(cut.groups, cut.parts, 2, cut.channels), counts=_statistics(cut.groups, cut.parts)
    )
    _launch(entries.forward, x, cut, apply, memory, measures=True)
    _launch(entries.merge_moments, x, cut, apply, memory)
    if y is not None:
        _launch(entries.forward, x, cut, apply, memory._replace(mean=mean, var=found.var), applies=True)
    return found


def _reduce(x: Tensor, cut: Tiling, apply: Apply, memory: Memory) -> tuple[Tensor, Tensor]:
    """The sums of dz and of dz * xhat; and dx and dresidual, if there is memory for them."""
    applies = memory.y is not None
    sums = _statistics(cut.groups, cut.channels), _statistics(cut.groups, cut.channels)
    memory = memory._replace(first=sums[0], second=sums[1])
    if cut.parts == 1:
        _launch(entries.backward, x, cut, apply, memory, measures=True, applies=applies)
        return sums
    memory = memory._replace(partial=_statistics(cut.groups, cut.parts, 2, cut.channels))
    _launch(entries.backward, x, cut, apply, memory, measures=True)
    _launch(entries.merge_sums, x, cut, apply, memory)
    if applies:
        _launch(entries.backward, x, cut, apply, memory, applies=True)
    return sums


# ---- from tensors to a call ----


def _launch(
    kernel: Callable[..., int],
    x: Tensor,
    cut: Tiling,
    apply: Apply,
    memory: Memory,
    *,
    measures: bool = False,
    applies: bool = False,
) -> None:
    """Runs an entry on x and what is given; `call` says what the kernels make of it."""
    weight, bias, eps, residual, mask, activation, negative_slope = apply
    dy, residual = _laid_out_like(memory.dy, x), _laid_out_like(residual, x)
    count = None if memory.shared is None else _as_statistics(memory.shared, cut)
    mean, var, weight, bias = map(_contiguous, (memory.mean, memory.var, weight, bias))
    mask = _contiguous(mask)
    address, kernels, rest, slope = _plan(
        kernel, cut, x.dtype, activation, residual is not None, mask is not None, measures
    )
    threads = min(torch.get_num_threads(), rest[-1])
    call = ctypes.create_string_buffer(PACK.size)
    PACK.pack_into(
        call,
        0,
        0,
        ctypes.addressof(call),
        *kernels,
        0 if dy is None else dy.data_ptr(),
        x.data_ptr(),
        *map(_address, (residual, mask, memory.y, memory.dresidual)),
        *map(_address, (count, memory.first, memory.second, memory.partial, memory.counts)),
        *_vector(mean),
        *_vector(var),
        *_vector(weight),
        *_vector(bias),
        measures,
        applies,
        count is not None,
        *rest[:-1],
        threads,
        eps,
        negative_slope if slope is None else slope,
    )
    run(address, call, threads)


@lru_cache(maxsize=4096)
def _plan(
    kernel: Callable[..., int],
    cut: Tiling,
    dtype: torch.dtype,
    activation: str | None,
    residual: bool,
    masked: bool,
    measures: bool,
) -> tuple[int, tuple[int, ...], tuple[int, ...], float | None]:
    """What stays from call to call: addresses of the entry and its row kernels, flags and sizes, a fixed slope."""
    form = "" if activation is None else "smooth" if activation in SMOOTH else "bent"
    passes = kernel is entries.forward or kernel is entries.backward
    items = cut.items if passes else cut.groups
    values = cut.groups * cut.examples * cut.channels * cut.length
    size = values * dtype.itemsize
    beyond = size > _cache_size() // 2
    row = cut.width * dtype.itemsize
    rest = (
        beyond and not measures,  # the last that was measured is still in the cache
        beyond and dtype.itemsize >= 4 and (row % 64 == 0 or row >= 2048),  # lines that nobody reads soon
        dtype.itemsize,
        SMOOTH.index(activation) if form == "smooth" else 0,
        *cut,
        items,
        max(1, min(items, values // VALUES_A_THREAD)),
    )
    address = kernel(dtype == torch.float64) if passes else kernel()
    kernels = _row_kernels(kernel, Variant(NAMES[dtype], form, residual, masked, cut.runs))
    return address, kernels, rest, None if activation == "leaky_relu" else 0.0


def _row_kernels(kernel: Callable[..., int], variant: Variant) -> tuple[int, ...]:
    """Addresses of the row kernels that a pass calls, in the order of `call.KERNELS`."""
    statistics = variant._replace(activation="", residual=False)
    if kernel is entries.forward:
        return row_kernels.add_values(statistics), row_kernels.add_moments(statistics), row_kernels.apply(variant), 0, 0
    if kernel is entries.backward:
        return 0, 0, 0, row_kernels.add_products(variant), row_kernels.input_grad(variant)
    return 0, 0, 0, 0, 0


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _vector(values: Tensor | None) -> tuple[int, int, int]:
    """Address, dtype code and step from group to group."""
    if values is None:
        return 0, 0, 0
    return values.data_ptr(), CODES[NAMES[values.dtype]], values.shape[-1] if values.dim() == 2 else 0


def _contiguous(values: Tensor | None) -> Tensor | None:
    return values if values is None or values.is_contiguous() else values.contiguous()


def _dense(x: Tensor, groups: int | None = None) -> Tensor:
    channel = 2 if groups is None else 1
    return x if x.is_contiguous() or x.movedim(channel, -1).is_contiguous() else x.contiguous()


def _laid_out_like(values: Tensor | None, x: Tensor) -> Tensor | None:
    if values is None or (values.stride() == x.stride() and values.dtype == x.dtype):
        return values
    return torch.empty_like(x).copy_(values)


def _cut(x: Tensor, groups: int | None = None, fused: bool = True) -> Tiling:
    if groups is None:
        return _cut_canonical(tuple(x.shape), x.is_contiguous(), fused)
    return _cut_natural(tuple(x.shape), groups, x.is_contiguous(), fused)


@lru_cache(maxsize=4096)
def _cut_canonical(shape: tuple[int, int, int, int], channels_first: bool, fused: bool) -> Tiling:
    *_, length = shape
    return tiling(*shape, length == 1 or not channels_first, fused)


@lru_cache(maxsize=4096)
def _cut_natural(shape: tuple[int, ...], groups: int, channels_first: bool, fused: bool) -> Tiling:
    examples, channels, *rest = shape
    return _cut_canonical((groups, examples // groups, channels, math.prod(rest)), channels_first, fused)


def _as_statistics(values: Tensor, cut: Tiling) -> Tensor:
    shape = cut.groups, cut.channels
    if values.shape == shape and values.dtype == torch.float64:
        return values.contiguous()
    return values.double().expand(shape).contiguous()


def _statistics(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64)


def _empty_dresidual(x: Tensor, apply: Apply) -> Tensor | None:
    return None if apply.residual is None else torch.empty_like(x)


@lru_cache
def _cache_size() -> int:
    """Bytes of the last cache, 32 MiB where the system does not say."""
    try:
        return os.sysconf("SC_LEVEL3_CACHE_SIZE") or 1 << 25
    except (AttributeError, ValueError, OSError):
        return 1 << 25
