"""The passes as C functions of the address of a `call.CALL`: for float32 or float64 as the number to compute with."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import carray

from . import merging, passes
from .call import CALL, ROW
from .compiling import entry, inner, pointer

PAD = 80
"""Scratch lines are this much longer than a row, so that they do not lie a whole page apart: loads would wait for stores."""


@inner
def statistics(call):
    """Memory of a pass's statistics: count, first, second."""
    shape = call.groups, call.channels
    return (
        carray(pointer(call.count), shape, np.float64),
        carray(pointer(call.first), shape, np.float64),
        carray(pointer(call.second), shape, np.float64),
    )


@lru_cache
def forward(double: bool) -> int:
    """Address of the forward pass."""
    number = np.float64 if double else np.float32

    @entry
    def steadynorm_forward(address):
        call = carray(address, 1, CALL)[0]
        count, first, second = statistics(call)
        partial = carray(pointer(call.partial), (call.groups, call.parts, 2, call.channels), np.float64)
        counts = carray(pointer(call.counts), (call.groups, call.parts), np.float64)
        row = np.empty(1, ROW)
        numbers = np.empty((9, call.width + PAD), number)
        wide = np.empty((10, call.width + PAD), np.float64)
        keep = np.empty(call.width, np.bool_)
        row[0].staged, row[0].streams = numbers[4].ctypes.data, call.streams
        row[0].scratch, row[0].stride = numbers[5].ctypes.data, call.stride
        row[0].keep, row[0].kind, row[0].slope = keep.ctypes.data, call.kind, call.slope
        passes.forward_items(call, count, first, second, partial, counts, row, numbers, wide, keep)

    return steadynorm_forward.address


@lru_cache
def backward(double: bool) -> int:
    """Address of the backward pass."""
    number = np.float64 if double else np.float32

    @entry
    def steadynorm_backward(address):
        call = carray(address, 1, CALL)[0]
        count, first, second = statistics(call)
        partial = carray(pointer(call.partial), (call.groups, call.parts, 2, call.channels), np.float64)
        row = np.empty(1, ROW)
        numbers = np.empty((9, call.width + PAD), number)
        wide = np.empty((10, call.width + PAD), np.float64)
        keep = np.empty(call.width, np.bool_)
        row[0].staged, row[0].streams = numbers[8].ctypes.data, call.streams
        row[0].scratch, row[0].varies, row[0].stride = numbers[5].ctypes.data, call.varies, call.stride
        row[0].keep, row[0].kind, row[0].slope = keep.ctypes.data, call.kind, call.slope
        passes.backward_items(call, count, first, second, partial, row, numbers, wide, keep)

    return steadynorm_backward.address


@lru_cache
def merge_moments() -> int:
    """Address of the kernel that merges the moments of parts."""

    @entry
    def steadynorm_merge_moments(address):
        call = carray(address, 1, CALL)[0]
        count, first, second = statistics(call)
        partial = carray(pointer(call.partial), (call.groups, call.parts, 2, call.channels), np.float64)
        counts = carray(pointer(call.counts), (call.groups, call.parts), np.float64)
        merging.merge_moments(call, partial, counts, count, first, second)

    return steadynorm_merge_moments.address


@lru_cache
def merge_sums() -> int:
    """Address of the kernel that adds up the gradient sums of parts."""

    @entry
    def steadynorm_merge_sums(address):
        call = carray(address, 1, CALL)[0]
        count, first, second = statistics(call)
        partial = carray(pointer(call.partial), (call.groups, call.parts, 2, call.channels), np.float64)
        merging.merge_sums(call, partial, first, second)

    return steadynorm_merge_sums.address
