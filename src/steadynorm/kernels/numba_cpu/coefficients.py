"""The few numbers a channel is normalized with, from its statistics and parameters; all in float64."""

from __future__ import annotations

import math

import numpy as np

from .compiling import carray, inner, pointer
from .elements import load, store

CODES = {"float32": 1, "float64": 2, "bfloat16": 3, "float16": 4}
"""How a dtype is named in a call; 0 is no vector."""
NEAR = 1.0
"""Squared mean, in variances, up to which distances from 0 are as exact as those from the mean."""


@inner
def value(address, code, index, missing):
    """Element of a vector of any dtype; `missing` where there is no vector."""
    if code == 1:
        return float(carray(pointer(address), index + 1, np.float32)[index])
    if code == 2:
        return carray(pointer(address), index + 1, np.float64)[index]
    if code == 3:
        return float(load(carray(pointer(address), index + 1, np.uint16)[index]))
    if code == 4:
        return float(load(carray(pointer(address), index + 1, np.int16)[index]))
    return missing


@inner
def put(address, code, index, new):
    """Sets an element of a vector of any dtype."""
    if code == 1:
        carray(pointer(address), index + 1, np.float32)[index] = new
    elif code == 2:
        carray(pointer(address), index + 1, np.float64)[index] = new
    elif code == 3:
        carray(pointer(address), index + 1, np.uint16)[index] = store(np.float32(new), np.uint16(0))
    elif code == 4:
        carray(pointer(address), index + 1, np.int16)[index] = store(np.float32(new), np.int16(0))


@inner
def read_statistics(call, group, first, mean, var):
    """The given statistics of a tile."""
    for channel in range(len(mean)):
        place = first + channel
        mean[channel] = value(call.mean, call.mean_code, group * call.mean_step + place, 0.0)
        var[channel] = value(call.var, call.var_code, group * call.var_step + place, 1.0)


@inner
def scales(call, group, first, mean, var, scratch, rest, invstd, scale, shift):
    """What normalizes a tile.

    Distances are taken from the mean as scratch's type holds it, or, where it is near, from 0: that spares a rounding
    of each value. `rest` is what the mean has beyond; the shift accounts for it.
    """
    for channel in range(len(mean)):
        place = first + channel
        invstd[channel] = 1 / math.sqrt(var[channel] + call.eps)
        scratch[0] = 0.0 if mean[channel] * mean[channel] <= NEAR * var[channel] else mean[channel]
        rest[channel] = mean[channel] - scratch[0]
        scale[channel] = invstd[channel] * value(call.weight, call.weight_code, group * call.weight_step + place, 1.0)
        bias = value(call.bias, call.bias_code, group * call.bias_step + place, 0.0)
        shift[channel] = bias - rest[channel] * scale[channel]
