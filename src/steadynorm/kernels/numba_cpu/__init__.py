"""The six functions as compiled kernels for CPU tensors: float32, float64, bfloat16 and float16, in both memory orders.

Elements are computed in float32 (float64 for float64), sums of them in blocks that float64 adds up, statistics in
float64. Results are the same bits whatever the number of threads.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...moments import Moments
from .. import Apply, Gradients
from . import entries, row_kernels
from .call import PACK
from .coefficients import CODES
from .elements import SMOOTH, STORED
from .row_kernels import Variant
from .threads import run
from .tiling import Tiling, tiling

NAMES = {getattr(torch, name): name for name in STORED}
"""Dtypes the kernels know, and what they call them."""
VALUES_A_THREAD = 1 << 15
"""Values that take longer to compute than a further thread takes to wake."""
PLAIN = Apply(None, None, 0.0)


class Memory(NamedTuple):
    """What a pass reads beside x, and writes: see `call.ADDRESSES`."""

    dy: Tensor | None = None
    y: Tensor | None = None
    dresidual: Tensor | None = None
    count: Tensor | None = None
    first: Tensor | None = None
    second: Tensor | None = None
    partial: Tensor | None = None
    counts: Tensor | None = None
    mean: Tensor | None = None
    var: Tensor | None = None


def moments(x: Tensor, mask: Tensor | None = None) -> Moments:
    return _measure(_dense(x), PLAIN._replace(mask=mask), None)


def normalize(x: Tensor, mean: Tensor, var: Tensor, apply: Apply) -> Tensor:
    x = _dense(x)
    y = torch.empty_like(x)
    _launch(entries.forward, x, _cut(x), apply, Memory(y=y, mean=mean, var=var), applies=True)
    return y


def forward(x: Tensor, apply: Apply) -> tuple[Tensor, Moments]:
    x = _dense(x)
    y = torch.empty_like(x)
    return y, _measure(x, apply, y)


def reduce_grad(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, apply: Apply) -> tuple[Tensor, Tensor]:
    return _reduce(_dense(x), apply, Memory(dy=dy, mean=mean, var=var))


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
    first, second = (None, None) if sums is None else sums
    memory = Memory(dy, dx, dresidual, count, first, second, mean=mean, var=var)
    _launch(entries.backward, x, _cut(x), apply, memory, applies=True)
    return dx, dresidual


def backward(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, apply: Apply, count: Tensor | None = None) -> Gradients:
    x = _dense(x)
    dx, dresidual = torch.empty_like(x), _empty_dresidual(x, apply)
    sum_dz, sum_dz_xhat = _reduce(x, apply, Memory(dy, dx, dresidual, count, mean=mean, var=var))
    return Gradients(dx, sum_dz_xhat, sum_dz, dresidual)


# ---- a pass: one launch where tiles have one part; else one for the parts, one that merges them, one for the rest ----


def _measure(x: Tensor, apply: Apply, y: Tensor | None) -> Moments:
    """The moments; and y, if there is memory for it."""
    cut = _cut(x)
    count, mean, m2 = (_statistics(cut.groups, cut.channels) for _ in range(3))
    memory = Memory(y=y, count=count, first=mean, second=m2)
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


def _reduce(x: Tensor, apply: Apply, memory: Memory) -> tuple[Tensor, Tensor]:
    """The sums of dz and of dz * xhat; and dx and dresidual, if there is memory for them."""
    cut, applies = _cut(x), memory.y is not None
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
    count = None if memory.count is None else memory.count.expand(cut.groups, cut.channels).contiguous()
    mask = _contiguous(mask)
    vectors = [_contiguous(values) for values in (memory.mean, memory.var, weight, bias)]
    form = "" if activation is None else "smooth" if activation in SMOOTH else "bent"
    variant = Variant(NAMES[x.dtype], form, residual is not None, mask is not None, cut.runs)
    passes = kernel is entries.forward or kernel is entries.backward
    items = cut.items if passes else cut.groups
    threads = max(1, min(torch.get_num_threads(), items, x.numel() // VALUES_A_THREAD))
    beyond = _is_beyond_cache(x)
    call = ctypes.create_string_buffer(PACK.size)
    PACK.pack_into(
        call,
        0,
        0,
        ctypes.addressof(call),
        *_row_kernels(kernel, variant),
        *map(_address, (dy, x, residual, mask, memory.y, memory.dresidual)),
        *map(_address, (count, memory.first, memory.second, memory.partial, memory.counts)),
        *(number for values in vectors for number in _vector(values)),
        measures,
        applies,
        beyond and not measures,  # the last that was measured is still in the cache
        count is not None,
        beyond and _streams(x, cut),
        x.element_size(),
        SMOOTH.index(activation) if form == "smooth" else 0,
        *cut,
        items,
        threads,
        eps,
        negative_slope if activation == "leaky_relu" else 0.0,
    )
    run(kernel(x.dtype == torch.float64) if passes else kernel(), call, threads)


@lru_cache
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
    return None if values is None else values.contiguous()


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous() or x.transpose(2, 3).is_contiguous() else x.contiguous()


def _laid_out_like(values: Tensor | None, x: Tensor) -> Tensor | None:
    if values is None or (values.stride() == x.stride() and values.dtype == x.dtype):
        return values
    return torch.empty_like(x).copy_(values)


def _cut(x: Tensor) -> Tiling:
    groups, examples, channels, length = x.shape
    return tiling(groups, examples, channels, length, length == 1 or not x.is_contiguous())


def _statistics(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64)


def _empty_dresidual(x: Tensor, apply: Apply) -> Tensor | None:
    return None if apply.residual is None else torch.empty_like(x)


def _is_beyond_cache(x: Tensor) -> bool:
    """Whether the last cache does not hold x and what is made of it."""
    return x.numel() * x.element_size() > _cache_size() // 2


def _streams(x: Tensor, cut: Tiling) -> bool:
    """Whether it pays to write past the caches: rows are whole lines, or long, and computing is not the bottleneck."""
    row = cut.width * x.element_size()
    return x.element_size() >= 4 and (row % 64 == 0 or row >= 2048)


@lru_cache
def _cache_size() -> int:
    """Bytes of the last cache, 32 MiB where the system does not say."""
    try:
        return os.sysconf("SC_LEVEL3_CACHE_SIZE") or 1 << 25
    except (AttributeError, ValueError, OSError):
        return 1 << 25
