"""The compiled kernels' arithmetic on one value: smooth activations in float32, conversions of 16-bit values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from steadynorm.kernels.numba_cpu import elements


def elementwise(function: Callable[[Any], Any]) -> Any:
    """A compiled loop that applies a compiled function to each value."""

    @numba.njit(error_model="numpy")
    def loop(values, results):
        for j in range(len(values)):
            results[j] = function(values[j])

    return loop


def points() -> NDArray[np.float32]:
    """Everywhere from -200 to 200, closer together near 0, and the ends of the float32 range."""
    limits = np.finfo(np.float32)
    small = np.float32(10.0) ** np.arange(-45, 0, dtype=np.float32)
    ends = np.array([0, limits.tiny, limits.smallest_subnormal, limits.max, np.inf, np.nan], np.float32)
    spread = [np.linspace(-limit, limit, 20_001, dtype=np.float32) for limit in (1, 10, 200)]
    return np.concatenate([*spread, small, -small, ends, -ends])


@numba.njit
def below(z):
    return elements.normal(z)[0]


@numba.njit
def density(z):
    return elements.normal(z)[1]


@numba.njit
def sigmoid(z):
    return elements.sigmoid(z)


@numba.njit
def tanh(z):
    return elements.tanh(z)


EXPECTED: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "sigmoid": (sigmoid, torch.sigmoid),
    "tanh": (tanh, torch.tanh),
    "normal distribution": (below, torch.special.ndtr),
    "normal density": (density, lambda z: torch.exp(-0.5 * z * z) / (2 * torch.pi) ** 0.5),
}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize(("dtype", "allowed"), [(np.float32, 2e-7), (np.float64, 1e-15)])
def test_smooth_activations(name: str, dtype: type, allowed: float) -> None:
    compiled, exact = EXPECTED[name]
    z = points().astype(dtype)
    results = np.empty_like(z)
    elementwise(compiled)(z, results)
    expected = exact(torch.from_numpy(z).double()).numpy()
    assert np.array_equal(np.isnan(results), np.isnan(z))
    assert np.nanmax(np.abs(results - expected)) <= allowed


def test_tanh_is_odd_and_exact_near_zero() -> None:
    """Relative, not absolute: e^2z - 1 does not cancel."""
    z = np.logspace(-30, 0, 1001, dtype=np.float32)
    results, mirrored = np.empty_like(z), np.empty_like(z)
    elementwise(tanh)(z, results)
    elementwise(tanh)(-z, mirrored)
    exact = np.tanh(z.astype(np.float64))
    assert np.abs(results / exact - 1).max() <= 1e-6
    assert np.abs(mirrored / -exact - 1).max() <= 1e-6


@numba.njit
def to_single(values, results):
    for j in range(len(values)):
        results[j] = elements.load(values[j])


@numba.njit
def to_stored(values, results):
    for j in range(len(values)):
        results[j] = elements.store(values[j], results[j])


HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


def stored_type(dtype: torch.dtype) -> type:
    return elements.STORED[str(dtype).removeprefix("torch.")]


@HALVES
def test_every_16_bit_value_survives(dtype: torch.dtype) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).view(stored_type(dtype))
    single, back = np.empty(len(bits), np.float32), np.empty_like(bits)
    to_single(bits, single)
    to_stored(single, back)
    values = torch.from_numpy(bits.view(np.int16)).view(dtype)
    nan = values.isnan().numpy()
    assert np.array_equal(single, values.float().numpy(), equal_nan=True)
    assert np.array_equal(back[~nan], bits[~nan])
    assert torch.from_numpy(back.view(np.int16)).view(dtype)[torch.from_numpy(nan)].isnan().all()


@HALVES
def test_rounding_is_torchs(dtype: torch.dtype) -> None:
    """Of float32 values of every exponent, of values halfway between two of 16 bits, of nan and inf."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 31), 1 << 31, (1 << 20,), generator=generator).int()
    every = torch.arange(1 << 16, dtype=torch.int32).short().view(dtype).float()
    halfway = (every[:-1] + every[1:]) / 2
    single = torch.cat([bits.view(torch.float32), torch.randn(1 << 18, generator=generator) * 100, every, halfway])
    rounded = np.empty(len(single), stored_type(dtype))
    to_stored(single.numpy(), rounded)
    ours, theirs = torch.from_numpy(rounded.view(np.int16)).view(dtype), single.to(dtype)
    nan = single.isnan()
    assert torch.equal(ours.isnan(), nan)
    assert torch.equal(ours.view(torch.int16)[~nan], theirs.view(torch.int16)[~nan])
