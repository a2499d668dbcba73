"""The passes as C functions of the address of a `call.CALL`: for float32 or float64 as the number to compute with."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from . import merging, passes, places
from .call import CALL, ROW, VERDICT
from .compiling import carray, entry, inner, pointer

PAD = 80
"""Scratch lines are this much longer than a row: a page apart, loads would wait for stores."""
NUMBER_LINES, WIDE_LINES = 9, 10


@inner
def statistics(call):
    """Memory of a pass's statistics: count, first, second, variance; and those of parts: partial, counts."""
    shape = call.groups, call.channels
    return (
        carray(pointer(call.count), shape, np.float64),
        carray(pointer(call.first), shape, np.float64),
        carray(pointer(call.second), shape, np.float64),
        carray(pointer(call.variance), shape, np.float64),
        carray(pointer(call.partial), (call.groups, call.parts, 2, call.channels), np.float64),
        carray(pointer(call.counts), (call.groups, call.parts), np.float64),
    )


@inner
def describe(call, row, numbers, keep):
    """Tells row kernels what stays the same from row to row."""
    row[0].staged, row[0].scratch, row[0].keep = numbers[8].ctypes.data, numbers[5].ctypes.data, keep.ctypes.data
    row[0].streams, row[0].varies, row[0].stride = call.streams, call.varies, call.stride
    row[0].keep_stride = 0 if call.runs else call.width
    row[0].kind, row[0].slope = call.kind, call.slope


@lru_cache
def forward(double: bool) -> int:
    """Address of the forward pass."""
    number, bits = (np.float64, np.int64) if double else (np.float32, np.int32)

    @entry
    def steadynorm_forward(address):
        call = carray(address, 1, CALL)
        row = np.empty(1, ROW)
        width = max(call[0].width, call[0].tile_channels) + PAD
        numbers, wide = np.empty((NUMBER_LINES, width), number), np.empty((WIDE_LINES, width), np.float64)
        keep = np.empty((places.BLOCK, call[0].width if call[0].mask != 0 else 1), bits)
        describe(call[0], row, numbers, keep)
        passes.forward(call.ctypes.data, call[0], statistics(call[0]), row, numbers, wide, keep)

    return steadynorm_forward.address


@lru_cache
def backward(double: bool) -> int:
    """Address of the backward pass."""
    number, bits = (np.float64, np.int64) if double else (np.float32, np.int32)

    @entry
    def steadynorm_backward(address):
        call = carray(address, 1, CALL)
        row = np.empty(1, ROW)
        width = max(call[0].width, call[0].tile_channels) + PAD
        numbers, wide = np.empty((NUMBER_LINES, width), number), np.empty((WIDE_LINES, width), np.float64)
        keep = np.empty((places.BLOCK, call[0].width if call[0].mask != 0 else 1), bits)
        describe(call[0], row, numbers, keep)
        passes.backward(call.ctypes.data, call[0], statistics(call[0]), row, numbers, wide, keep)

    return steadynorm_backward.address


@lru_cache
def judge() -> int:
    """Address of the kernel that accepts or refuses what torch's own operator computed of a batch."""

    @entry
    def steadynorm_judge(address):
        told = carray(address, 1, VERDICT)
        mean = carray(pointer(told[0].mean), told[0].channels, np.float32)
        invstd = carray(pointer(told[0].invstd), told[0].channels, np.float32)
        if told[0].count == 0:
            told[0].accepted = merging.harmless_running(mean, invstd, told[0].eps)
        elif merging.harmless(mean, invstd, told[0].eps):
            told[0].accepted = 1
            if told[0].running_mean != 0:
                running_mean = carray(pointer(told[0].running_mean), told[0].channels, np.float32)
                running_var = carray(pointer(told[0].running_var), told[0].channels, np.float32)
                count, eps, momentum = told[0].count, told[0].eps, told[0].momentum
                merging.update_by_invstd(running_mean, running_var, mean, invstd, count, eps, momentum)

    return steadynorm_judge.address
