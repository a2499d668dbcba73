"""The paper's equations in NumPy float64: the oracle every kernel is tested against.

Equation numbers are those of docs/maths.md. Nothing here is fast; everything can be checked by hand. Arrays are
(N, C, *); `mask` is bool, broadcastable to x and of size 1 in the channel dimension, True where an element is real.

Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, Alg. 1 and 2 and sec. 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """Per channel, (C,): how many values, their mean, and their variance divided by n."""

    count: Array
    mean: Array
    var: Array


class Settings(NamedTuple):
    """The layer's affine map and what follows it."""

    weight: ArrayLike | None = None
    bias: ArrayLike | None = None
    eps: float = 1e-5
    residual: ArrayLike | None = None
    mask: NDArray[np.bool_] | None = None
    activation: str | None = None
    negative_slope: float = 0.01


class Gradients(NamedTuple):
    """Of x and residual, (N, C, *); of weight and bias, (C,)."""

    x: Array
    weight: Array
    bias: Array
    residual: Array


def statistics(x: ArrayLike, mask: NDArray[np.bool_] | None = None) -> Statistics:
    """Count, mean and variance of each channel over its real elements; 0 where there is none: (1), (2)."""
    x = np.asarray(x, np.float64)
    real = _real(x, mask)
    count = _sum(real.astype(np.float64))
    number = np.maximum(count, 1)
    mean = _sum(np.where(real, x, 0)) / number  # (1)
    centred = np.where(real, x - _spread(mean, x), 0)
    residue = _sum(centred) / number
    mean = mean + np.where(np.isfinite(mean), residue, 0)
    var = _sum(np.where(real, (x - _spread(mean, x)) ** 2, 0)) / number  # (2)
    return Statistics(count, mean, var)


def forward(x: ArrayLike, settings: Settings = Settings()) -> tuple[Array, Statistics]:
    """Training: y normalized by the batch's own statistics, and those: (1) to (6)."""
    batch = statistics(x, settings.mask)
    return inference(x, batch.mean, batch.var, settings), batch


def inference(x: ArrayLike, mean: ArrayLike, var: ArrayLike, settings: Settings = Settings()) -> Array:
    """y normalized by given statistics: (3) to (6)."""
    x = np.asarray(x, np.float64)
    y = activate(_pre_activation(x, mean, var, settings), settings)  # (6)
    return np.where(_real(x, settings.mask), y, 0)


def update_running(
    running_mean: ArrayLike, running_var: ArrayLike, batch: Statistics, momentum: float
) -> tuple[Array, Array]:
    """Running statistics after the batch; channels without a value keep theirs: (7), (8)."""
    running_mean, running_var = np.asarray(running_mean, np.float64), np.asarray(running_var, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        var_unbiased = batch.var * (batch.count / (batch.count - 1))
    mean = (1 - momentum) * running_mean + momentum * batch.mean  # (7)
    var = (1 - momentum) * running_var + momentum * var_unbiased  # (8)
    return np.where(batch.count > 0, mean, running_mean), np.where(batch.count > 0, var, running_var)


def backward(dy: ArrayLike, x: ArrayLike, settings: Settings = Settings()) -> Gradients:
    """Gradients through training's `forward`: (9) to (13)."""
    x = np.asarray(x, np.float64)
    batch = statistics(x, settings.mask)
    dz, xhat, dweight, dbias = _affine_backward(dy, x, batch.mean, batch.var, settings)
    number = np.maximum(batch.count, 1)
    dxhat = dz - _spread(dbias / number, x) - xhat * _spread(dweight / number, x)
    dx = _spread(_scale(batch.var, settings), x) * dxhat  # (12)
    return Gradients(np.where(_real(x, settings.mask), dx, 0), dweight, dbias, dz)


def inference_backward(
    dy: ArrayLike, x: ArrayLike, mean: ArrayLike, var: ArrayLike, settings: Settings = Settings()
) -> Gradients:
    """Gradients through `inference`, whose statistics are constants: (9) to (11) and (14)."""
    x = np.asarray(x, np.float64)
    dz, _, dweight, dbias = _affine_backward(dy, x, mean, var, settings)
    return Gradients(_spread(_scale(var, settings), x) * dz, dweight, dbias, dz)  # (14)


def activate(z: ArrayLike, settings: Settings) -> Array:
    """The activation of `settings` at z."""
    z = np.asarray(z, np.float64)
    functions = {
        None: lambda: z,
        "relu": lambda: np.where(z <= 0, 0, z),
        "relu6": lambda: np.clip(z, 0, 6),
        "hardswish": lambda: np.where(z <= -3, 0, z) * np.clip(z / 6 + 0.5, 0, 1),
        "leaky_relu": lambda: np.where(z <= 0, settings.negative_slope * z, z),
        "sigmoid": lambda: _sigmoid(z),
        "tanh": lambda: np.tanh(z),
        "silu": lambda: z * _sigmoid(z),
        "gelu": lambda: z * _normal_cdf(z),
    }
    return functions[settings.activation]()


def activate_derivative(z: ArrayLike, settings: Settings) -> Array:
    """The activation's derivative at z; at a kink as torch takes it, which is mostly from the left."""
    z = np.asarray(z, np.float64)
    functions = {
        None: lambda: np.ones_like(z),
        "relu": lambda: np.where(z <= 0, 0.0, 1.0),
        "relu6": lambda: np.where((z <= 0) | (z >= 6), 0.0, 1.0),
        "hardswish": lambda: np.where(z <= -3, 0.0, np.where(z < 3, z / 3 + 0.5, 1.0)),
        "leaky_relu": lambda: np.where(z <= 0, settings.negative_slope, 1.0),
        "sigmoid": lambda: _sigmoid(z) * (1 - _sigmoid(z)),
        "tanh": lambda: 1 - np.tanh(z) ** 2,
        "silu": lambda: _sigmoid(z) * (1 + z * (1 - _sigmoid(z))),
        "gelu": lambda: _normal_cdf(z) + z * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi),
    }
    return functions[settings.activation]()


def _affine_backward(
    dy: ArrayLike, x: Array, mean: ArrayLike, var: ArrayLike, settings: Settings
) -> tuple[Array, Array, Array, Array]:
    """dz, xhat, dweight and dbias: (9) to (11), (13)."""
    derivative = activate_derivative(_pre_activation(x, mean, var, settings), settings)
    dz = np.where(_real(x, settings.mask), np.asarray(dy, np.float64) * derivative, 0)  # (9), and (13): dresidual
    xhat = np.where(_real(x, settings.mask), (x - _spread(mean, x)) * _spread(_invstd(var, settings), x), 0)
    return dz, xhat, _sum(dz * xhat), _sum(dz)  # (10), (11)


def _pre_activation(x: Array, mean: ArrayLike, var: ArrayLike, settings: Settings) -> Array:
    xhat = (x - _spread(mean, x)) * _spread(_invstd(var, settings), x)  # (3)
    z = xhat if settings.weight is None else xhat * _spread(settings.weight, x)  # (4)
    z = z if settings.bias is None else z + _spread(settings.bias, x)
    return z if settings.residual is None else z + np.asarray(settings.residual, np.float64)  # (5)


def _invstd(var: ArrayLike, settings: Settings) -> Array:
    return 1 / np.sqrt(np.asarray(var, np.float64) + settings.eps)


def _scale(var: ArrayLike, settings: Settings) -> Array:
    invstd = _invstd(var, settings)
    return invstd if settings.weight is None else invstd * np.asarray(settings.weight, np.float64)


def _real(x: Array, mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    return np.broadcast_to(np.True_ if mask is None else mask, x.shape)


def _sum(x: Array) -> Array:
    """(N, C, *) → (C,), each channel laid out in one piece: only then does NumPy sum pairwise, in any memory order."""
    return np.ascontiguousarray(np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)).sum(axis=1)


def _spread(values: ArrayLike, x: Array) -> Array:
    """(C,) → (1, C, 1, ...), to meet x."""
    return np.asarray(values, np.float64).reshape(1, -1, *[1] * (x.ndim - 2))


def _sigmoid(z: Array) -> Array:
    return np.exp(-np.logaddexp(0, -z))


def _normal_cdf(z: Array) -> Array:
    return 0.5 * (1 + np.vectorize(math.erf, otypes=[np.float64])(z / math.sqrt(2)))
