"""The one tolerance rule: how far a result may be from the float64 reference."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

K = 4
"""Rounding steps granted. A normalized value takes about four: centre, scale, shift, round."""


def as_array(values: Tensor | ArrayLike) -> NDArray[np.float64]:
    return values.detach().double().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float64)


def largest_error(actual: Tensor | ArrayLike, expected: ArrayLike) -> float:
    """Largest absolute difference; nan and inf must be in the same places, and do not count."""
    actual, expected = as_array(actual), as_array(expected)
    finite = np.isfinite(expected)
    if not np.array_equal(np.where(finite, 0, expected), np.where(np.isfinite(actual), 0, actual), equal_nan=True):
        return np.inf
    return float(np.abs(np.where(finite, actual, 0) - np.where(finite, expected, 0)).max(initial=0))


def check(
    actual: Tensor,
    expected: ArrayLike,
    peer: Tensor | None = None,
    *,
    terms: int = 1,
    working: torch.dtype | None = None,
) -> None:
    """Asserts error <= max(2 * torch's own error, K * eps * sqrt(terms) * scale), and equal shapes.

    Args:
        actual: what steadynorm computed.
        expected: the reference, float64.
        peer: what torch computed from the same input, if it has an answer.
        terms: how many values were summed into one element; 1 for an elementwise result, whatever the batch.
        working: dtype whose eps counts, by default that of `actual`. A 16-bit result is rounded once more.
    """
    expected = as_array(expected)
    assert tuple(actual.shape) == expected.shape
    finite = expected[np.isfinite(expected)]
    scale = float(np.abs(finite).max(initial=0))
    eps = torch.finfo(working or (torch.float32 if actual.dtype.itemsize < 4 else actual.dtype)).eps
    allowed = K * eps * terms**0.5 * scale
    if actual.dtype.itemsize < 4:
        allowed += torch.finfo(actual.dtype).eps / 2 * scale
    if peer is not None:
        peer_error = largest_error(peer, expected)
        allowed = max(allowed, 2 * peer_error if np.isfinite(peer_error) else 0)
    error = largest_error(actual, expected)
    assert error <= allowed, f"error {error:.3g} above {allowed:.3g} (scale {scale:.3g})"
