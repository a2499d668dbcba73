"""From tensors to a call: what a kernel is told, on how many threads it runs."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import Apply
from . import entries, row_kernels
from .call import PACK
from .coefficients import CODES
from .elements import SMOOTH, STORED
from .row_kernels import Variant
from .threads import run
from .tiling import Tiling

NAMES = {getattr(torch, name): name for name in STORED}
"""Dtypes the kernels know, and what they call them."""
VALUES_A_THREAD = 1 << 15
"""Values that take longer to compute than a further thread takes to wake."""


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


def launch(
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
    count = None if memory.shared is None else as_statistics(memory.shared, cut)
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
        *map(address_of, (residual, mask, memory.y, memory.dresidual)),
        *map(address_of, (count, memory.first, memory.second, memory.partial, memory.counts)),
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


def address_of(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _vector(values: Tensor | None) -> tuple[int, int, int]:
    """Address, dtype code and step from group to group."""
    if values is None:
        return 0, 0, 0
    return values.data_ptr(), CODES[NAMES[values.dtype]], values.shape[-1] if values.dim() == 2 else 0


def _contiguous(values: Tensor | None) -> Tensor | None:
    return values if values is None or values.is_contiguous() else values.contiguous()


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
        return os.sysconf("SC_LEVEL3_CACHE_SIZE") or 1 << 25
    except (AttributeError, ValueError, OSError):
        return 1 << 25
