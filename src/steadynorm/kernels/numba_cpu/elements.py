"""One value: from and to memory, and the smooth activations, in float32 (float64 for float64).

bfloat16 lies in memory as uint16 and float16 as int16, as numba has neither: their type tells them apart.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from .compiling import exact

STORED = {"float32": np.float32, "float64": np.float64, "bfloat16": np.uint16, "float16": np.int16}
"""What a dtype's memory is read as."""

SMOOTH = ("silu", "gelu", "sigmoid", "tanh")
"""Activations that are not piecewise linear; the kernels know them by their place here."""


def load(value: Any) -> Any:
    """What lies in memory as the number to compute with."""
    raise NotImplementedError


def store(value: Any, like: Any) -> Any:
    """The number as it lies in memory of the type of `like`, rounded to the nearest, ties to even."""
    raise NotImplementedError


@overload(load, jit_options={"forceinline": True})
def _load(value):
    if value == types.uint16:
        return lambda value: np.uint32(np.uint32(value) << np.uint32(16)).view(np.float32)
    if value == types.int16:
        return lambda value: _widen_half(value)
    return lambda value: value


@overload(store, jit_options={"forceinline": True})
def _store(value, like):
    if like == types.uint16:
        return lambda value, like: _to_bfloat(value)
    if like == types.int16:
        return lambda value, like: _narrow_half(value)
    return lambda value, like: value


@exact
def _to_bfloat(value: np.float32) -> np.uint16:
    bits = np.float32(value).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(np.uint32(0x7FC0) if value != value else rounded)


def _widen_half_code(typing_context: Any, bits: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), codegen


_widen_half: Any = intrinsic(_widen_half_code)


def _narrow_half_code(typing_context: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(builder.fptrunc(arguments[0], ir.HalfType()), ir.IntType(16))

    return types.int16(types.float32), codegen


_narrow_half: Any = intrinsic(_narrow_half_code)


def _masked_code(typing_context: Any, value: Any, keep: Any) -> Any:
    """The number, or 0 where no bit of the integer as wide is set."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = builder.bitcast(arguments[0], arguments[1].type)
        return builder.bitcast(builder.and_(bits, arguments[1]), arguments[0].type)

    return value(value, keep), codegen


masked: Any = intrinsic(_masked_code)


# ---- the smooth activations: libm's in float64; in float32 short polynomials, which vectorize ----


@exact
def _expm1_scaled(x: np.float32) -> tuple[np.float32, np.float32]:
    r"""(2^n, p) with e^x = 2^n (1 + p), |x| ≤ 88 (further out it is held there).

    .. math:: n = \mathrm{round}(x / \ln 2), \quad p = e^r - 1 = \sum_{k=1}^{8} r^k / k!, \quad r = x - n \ln 2

    |r| ≤ 0.35, so the first neglected term is below 3e-10 of r.
    """
    x = np.float32(-87.0) if x < np.float32(-87.0) else x
    x = np.float32(88.0) if x > np.float32(88.0) else x
    n = np.int32(x * np.float32(1.44269504) + (np.float32(0.5) if x > 0 else np.float32(-0.5)))
    whole = np.float32(n)
    r = (x - whole * np.float32(0.693359375)) + whole * np.float32(2.12194440e-4)  # ln 2 in two parts
    p = r * np.float32(1 / 40320) + np.float32(1 / 5040)
    p = p * r + np.float32(1 / 720)
    p = p * r + np.float32(1 / 120)
    p = p * r + np.float32(1 / 24)
    p = p * r + np.float32(1 / 6)
    p = p * r + np.float32(1 / 2)
    p = p * r + np.float32(1)
    return np.int32(np.int32(n + np.int32(127)) << np.int32(23)).view(np.float32), p * r


def sigmoid(z: Any) -> Any:
    """1 / (1 + e^-z)."""
    raise NotImplementedError


def tanh(z: Any) -> Any:
    """(e^2z - 1) / (e^2z + 1), by e^2z - 1, which does not cancel for small z."""
    raise NotImplementedError


def normal(z: Any) -> Any:
    """The standard normal distribution's function and density at z."""
    raise NotImplementedError


@exact
def _sigmoid_single(z: np.float32) -> np.float32:
    power, p = _expm1_scaled(-z)
    return np.float32(1) / (np.float32(1) + power * (np.float32(1) + p))


@exact
def _tanh_single(z: np.float32) -> np.float32:
    power, p = _expm1_scaled(np.float32(2) * z)
    grown = power * p + (power - np.float32(1))
    y = grown / (grown + np.float32(2))
    return np.float32(1) if z > np.float32(10) else y


@exact
def _normal_single(z: np.float32) -> tuple[np.float32, np.float32]:
    """The tail is e^(-z²/2) times a polynomial in t = 1 / (1 + 0.3 |z|), fitted by least squares: within 1e-8."""
    distance = -z if z < 0 else z
    power, p = _expm1_scaled(np.float32(-0.5) * distance * distance)
    bell = power * (np.float32(1) + p)
    t = np.float32(1) / (np.float32(1) + np.float32(0.3) * distance)
    tail = t * np.float32(0.035272937) + np.float32(-0.15480304)
    tail = tail * t + np.float32(0.20082207)
    tail = tail * t + np.float32(-0.0471862)
    tail = tail * t + np.float32(0.12433886)
    tail = tail * t + np.float32(0.10142873)
    tail = tail * t + np.float32(0.12047765)
    tail = tail * t + np.float32(0.119648993)
    tail = tail * t * bell
    return (tail if z < 0 else np.float32(1) - tail), bell * np.float32(0.3989422804)


@overload(sigmoid, jit_options={"forceinline": True})
def _sigmoid(z):
    return (lambda z: 1 / (1 + math.exp(-z))) if z == types.float64 else (lambda z: _sigmoid_single(z))


@overload(tanh, jit_options={"forceinline": True})
def _tanh(z):
    return (lambda z: math.tanh(z)) if z == types.float64 else (lambda z: _tanh_single(z))


@overload(normal, jit_options={"forceinline": True})
def _normal(z):
    if z != types.float64:
        return lambda z: _normal_single(z)
    half, root = math.sqrt(0.5), math.sqrt(2 * math.pi)
    return lambda z: (0.5 * math.erfc(-z * half), math.exp(-0.5 * z * z) / root)
