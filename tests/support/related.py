"""Ghost batches, renormalization and whitening in NumPy float64, on top of the reference."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from steadynorm import reference
from steadynorm.reference import Array, Gradients, Settings, Statistics

# ---- ghost batches ----


def ghost_sizes(shape: tuple[int, ...], size: int) -> list[int]:
    """Examples of each ghost: a rest is a smaller one, which joins the last if it had one value a channel."""
    whole, rest = divmod(shape[0], size)
    sizes = [size] * whole + [rest] * (rest > 0)
    if len(sizes) > 1 and sizes[-1] * np.prod(shape[2:]) == 1 and rest:
        sizes[-2:] = [sizes[-2] + sizes[-1]]
    return sizes


def ghost_forward(x: ArrayLike, sizes: list[int], settings: Settings) -> Array:
    """y of every ghost, one after the other."""
    parts = zip(_cut(x, sizes), _cut_settings(settings, sizes), strict=True)
    return np.concatenate([reference.forward(part, own)[0] for part, own in parts])


def ghost_backward(dy: ArrayLike, x: ArrayLike, sizes: list[int], settings: Settings) -> Gradients:
    """Those of x and residual one after the other; those of weight and bias added up."""
    parts = zip(_cut(dy, sizes), _cut(x, sizes), _cut_settings(settings, sizes), strict=True)
    found = [reference.backward(dy, part, own) for dy, part, own in parts]
    dx, dweight, dbias, dresidual = zip(*found, strict=True)
    return Gradients(np.concatenate(dx), np.sum(dweight, 0), np.sum(dbias, 0), np.concatenate(dresidual))


def _cut(x: ArrayLike, sizes: list[int]) -> list[Array]:
    return np.split(np.asarray(x, np.float64), np.cumsum(sizes)[:-1])


def _cut_settings(settings: Settings, sizes: list[int]) -> list[Settings]:
    none = [None] * len(sizes)
    residuals = none if settings.residual is None else _cut(settings.residual, sizes)
    masks = none if settings.mask is None else np.split(settings.mask, np.cumsum(sizes)[:-1])
    return [settings._replace(residual=r, mask=m) for r, m in zip(residuals, masks, strict=True)]


# ---- renormalization ----


def corrections(
    batch: Statistics, mean: ArrayLike, var: ArrayLike, rmax: float, dmax: float, eps: float
) -> tuple[Array, Array]:
    """r and d, (C,)."""
    sd = np.sqrt(np.asarray(var, np.float64) + eps)
    r, d = np.sqrt(batch.var + eps) / sd, (batch.mean - np.asarray(mean, np.float64)) / sd
    return np.clip(r, 1 / rmax, rmax), np.clip(d, -dmax, dmax)


def renorm_settings(settings: Settings, r: Array, d: Array) -> Settings:
    """(xhat * r + d) * weight + bias as an affine map of xhat."""
    weight = np.ones_like(r) if settings.weight is None else np.asarray(settings.weight, np.float64)
    bias = 0 if settings.bias is None else np.asarray(settings.bias, np.float64)
    return settings._replace(weight=weight * r, bias=weight * d + bias)


def renorm_backward(dy: ArrayLike, x: ArrayLike, settings: Settings, r: Array, d: Array) -> Gradients:
    """Gradients with r and d constant."""
    grads = reference.backward(dy, x, renorm_settings(settings, r, d))
    return grads._replace(weight=grads.weight * r + grads.bias * d)


# ---- whitening ----


def covariances(x: ArrayLike, size: int, mask: np.ndarray | None = None) -> tuple[Array, Array]:
    """Mean (C,) and covariance, divided by n, of each group of so many channels, over the real elements."""
    columns = real_columns(x, mask)
    mean = columns.mean(1)
    groups = (columns - mean[:, None]).reshape(-1, size, columns.shape[1])
    return mean, groups @ groups.transpose(0, 2, 1) / columns.shape[1]


def real_columns(x: ArrayLike, mask: np.ndarray | None = None) -> Array:
    """(N, C, *) → (C, values), without those that are not real."""
    x = np.asarray(x, np.float64)
    columns = np.moveaxis(x, 1, 0).reshape(x.shape[1], -1)
    if mask is None:
        return columns
    return columns[:, np.broadcast_to(mask, (len(x), 1, *x.shape[2:])).reshape(-1)]


def inverse_root(covariance: Array, eps: float) -> Array:
    """(covariance + eps)^(-1/2) by eigenvalues."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors / np.sqrt(values + eps)[..., None, :]) @ vectors.swapaxes(-1, -2)


def newton_inverse_root(covariance: Array, eps: float, iterations: int) -> Array:
    """IterNorm as its paper writes it: P <- (3 P - P^3 Sigma_N) / 2, from the identity."""
    identity = np.eye(covariance.shape[-1])
    sigma = covariance + eps * identity
    trace = np.trace(sigma, axis1=-2, axis2=-1)[:, None, None]
    root = np.broadcast_to(identity, sigma.shape)
    for _ in range(iterations):
        root = (3 * root - root @ root @ root @ (sigma / trace)) / 2
    return root / np.sqrt(trace)


def whiten(x: ArrayLike, mean: Array, matrices: Array, settings: Settings) -> Array:
    """activation(weight * matrix @ (x - mean) + bias + residual), 0 where the mask is False."""
    x = np.asarray(x, np.float64)
    centred = np.moveaxis(x, 1, 0).reshape(len(matrices), matrices.shape[1], -1) - mean.reshape(len(matrices), -1, 1)
    z = np.moveaxis((matrices @ centred).reshape(x.shape[1], len(x), *x.shape[2:]), 0, 1)
    plain = settings._replace(eps=0.0)
    return reference.inference(z, np.zeros(x.shape[1]), np.ones(x.shape[1]), plain)
