"""The passes as C functions of the address of a `call.CALL`: for float32 or float64 as the number to compute with."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from . import merging, passes
from .call import CALL, ROW, UPDATE, VERDICT
from .compiling import carray, entry, inner, pointer

PAD = 80
"""Scratch lines are this much longer than a row: a page apart, loads would wait for stores."""


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
        numbers = np.empty((9, max(call.width, call.tile_channels) + PAD), number)
        wide = np.empty((10, max(call.width, call.tile_channels) + PAD), np.float64)
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
        numbers = np.empty((9, max(call.width, call.tile_channels) + PAD), number)
        wide = np.empty((10, max(call.width, call.tile_channels) + PAD), np.float64)
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
        _, first, second = statistics(call)
        partial = carray(pointer(call.partial), (call.groups, call.parts, 2, call.channels), np.float64)
        merging.merge_sums(call, partial, first, second)

    return steadynorm_merge_sums.address


@lru_cache
def update() -> int:
    """Address of the kernel that moves running statistics."""

    @entry
    def steadynorm_update(address):
        told = carray(address, 1, UPDATE)[0]
        count = carray(pointer(told.count), told.channels, np.float64)
        mean = carray(pointer(told.mean), told.channels, np.float64)
        m2 = carray(pointer(told.m2), told.channels, np.float64)
        if told.double:
            running_mean = carray(pointer(told.running_mean), told.channels, np.float64)
            running_var = carray(pointer(told.running_var), told.channels, np.float64)
            merging.update(running_mean, running_var, count, mean, m2, told.momentum)
        else:
            running_mean = carray(pointer(told.running_mean), told.channels, np.float32)
            running_var = carray(pointer(told.running_var), told.channels, np.float32)
            merging.update(running_mean, running_var, count, mean, m2, told.momentum)

    return steadynorm_update.address


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
