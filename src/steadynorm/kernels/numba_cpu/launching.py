"""From tensors to a call: what a kernel is told, on how many threads it runs."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import Apply
from . import entries, row_kernels
from .call import COUNTERS, PACK_GIVEN, PACK_PLANNED
from .coefficients import CODES
from .elements import SMOOTH, STORED
from .row_kernels import Variant
from .threads import run
from .tiling import Tiling

NAMES = {getattr(torch, name): name for name in STORED}
"""Dtypes the kernels know, and what they call them."""
NOTHING_TAKEN = (0,) * len(COUNTERS)
POISONED = struct.Struct("q")
VALUES_A_THREAD = 1 << 15
"""Values that take longer to compute than a further thread takes to wake."""


Statistics = Tensor | int | None
"""float64 (groups, channels), or of one group by its address, which costs less to name."""


class Memory(NamedTuple):
    """What a pass reads beside x, and writes: see `call.ADDRESSES`, where `shared` is count."""

    dy: Tensor | None = None
    y: Tensor | None = None
    dresidual: Tensor | None = None
    shared: Statistics = None
    first: Statistics = None
    second: Statistics = None
    variance: Statistics = None
    partial: Tensor | None = None
    counts: Tensor | None = None
    mean: Statistics = None
    var: Statistics = None
    running_mean: Tensor | None = None
    running_var: Tensor | None = None
    dweight: Tensor | None = None
    dbias: Tensor | None = None
    momentum: float = 0.0
    guarded: bool = False


def launch(
    kernel: Callable[[bool], int],
    x: Tensor,
    cut: Tiling,
    apply: Apply,
    memory: Memory,
    *,
    measures: bool = False,
    applies: bool = False,
) -> bool:
    """Runs a pass on x and what is given; `call` says what the kernels make of it.

    Returns:
        Whether the moments are finite, as far as running statistics move.
    """
    weight, bias, eps, residual, mask, activation, negative_slope = apply
    dy, residual = _laid_out_like(memory.dy, x), _laid_out_like(residual, x)
    count = as_statistics(memory.shared, cut) if isinstance(memory.shared, Tensor) else memory.shared
    mean, var, weight, bias, mask = map(_contiguous, (memory.mean, memory.var, weight, bias, mask))
    plan = _plan(kernel, cut, x.dtype, activation, residual is not None, mask is not None, measures, applies)
    threads = min(torch.get_num_threads(), plan.threads)
    dweight, dbias = memory.dweight, memory.dbias
    call = ctypes.create_string_buffer(PACK_GIVEN.size + len(plan.packed))
    PACK_GIVEN.pack_into(
        call,
        0,
        *NOTHING_TAKEN,
        *map(address_of, (dy, x, residual, mask, memory.y, memory.dresidual, count, memory.first, memory.second)),
        *map(address_of, (memory.variance, memory.partial, memory.counts, memory.running_mean, memory.running_var)),
        address_of(dweight),
        address_of(dbias),
        *_vector(mean),
        *_vector(var),
        *_vector(weight),
        *_vector(bias),
        _code(memory.running_mean),
        memory.guarded,
        _code(dweight),
        _code(dbias),
        measures,
        applies,
        count is not None,
        threads,
        eps,
        negative_slope if plan.slope is None else plan.slope,
        memory.momentum,
    )
    call[PACK_GIVEN.size :] = plan.packed
    run(plan.entry, call, 1 if threads == 1 else torch.get_num_threads())
    return not POISONED.unpack_from(call, 8 * COUNTERS.index("poisoned"))[0]


class Plan(NamedTuple):
    """What stays from call to call: address of the entry, the end of the record, threads that pay, a fixed slope."""

    entry: int
    packed: bytes
    threads: int
    slope: float | None


@lru_cache(maxsize=4096)
def _plan(
    kernel: Callable[[bool], int],
    cut: Tiling,
    dtype: torch.dtype,
    activation: str | None,
    residual: bool,
    masked: bool,
    measures: bool,
    applies: bool,
) -> Plan:
    form = "" if activation is None else "smooth" if activation in SMOOTH else "bent"
    values = cut.groups * cut.examples * cut.channels * cut.length
    size = values * dtype.itemsize
    beyond = size > _cache_size() // 2
    row = cut.width * dtype.itemsize
    packed = PACK_PLANNED.pack(
        *_row_kernels(kernel, Variant(NAMES[dtype], form, residual, masked, cut.runs), measures, applies),
        beyond,  # what was measured last is still in the cache
        beyond and dtype.itemsize >= 4 and (row % 64 == 0 or row >= 2048),  # lines that nobody reads soon
        dtype.itemsize,
        SMOOTH.index(activation) if activation in SMOOTH else 0,
        *cut,
        cut.items,
    )
    threads = max(1, min(cut.items, values // VALUES_A_THREAD))
    return Plan(kernel(dtype == torch.float64), packed, threads, None if activation == "leaky_relu" else 0.0)


def _row_kernels(
    kernel: Callable[[bool], int], variant: Variant, measures: bool, applies: bool
) -> tuple[int, int, int, int, int]:
    """Addresses of the row kernels that a pass calls, in the order of `call.KERNELS`; 0 for what it does not call."""
    statistics = variant._replace(activation="", residual=False)
    if kernel is entries.forward:
        return (
            row_kernels.add_values(statistics) if measures else 0,
            row_kernels.add_moments(statistics) if measures else 0,
            row_kernels.apply(variant) if applies else 0,
            0,
            0,
        )
    return (
        0,
        0,
        0,
        row_kernels.add_products(variant) if measures else 0,
        row_kernels.input_grad(variant) if applies else 0,
    )


def address_of(memory: Statistics) -> int:
    return 0 if memory is None else memory if isinstance(memory, int) else memory.data_ptr()


def _code(values: Tensor | None) -> int:
    return 0 if values is None else CODES[NAMES[values.dtype]]


def _vector(values: Statistics) -> tuple[int, int, int]:
    """Address, dtype code and step from group to group."""
    if values is None:
        return 0, 0, 0
    if isinstance(values, int):
        return values, CODES["float64"], 0
    return values.data_ptr(), CODES[NAMES[values.dtype]], values.shape[-1] if values.dim() == 2 else 0


def _contiguous(values: Any) -> Any:
    return values if not isinstance(values, Tensor) or values.is_contiguous() else values.contiguous()


def _laid_out_like(values: Tensor | None, x: Tensor) -> Tensor | None:
    if values is None or (values.stride() == x.stride() and values.dtype == x.dtype):
        return values
    return torch.empty_like(x).copy_(values)


def as_statistics(values: Tensor, cut: Tiling) -> Tensor:
    shape = cut.groups, cut.channels
    if values.shape == shape and values.dtype == torch.float64:
        return values.contiguous()
    return values.double().expand(shape).contiguous()


@lru_cache
def _cache_size() -> int:
    """Bytes of the last cache, 32 MiB where the system does not say."""
    try:
        size = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (AttributeError, ValueError, OSError):
        size = 0
    return size if size > 0 else 1 << 25
