"""How exact the compiled kernels' moments are, where a sum of squares in float32 would not be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from steadynorm import reference
from steadynorm.kernels import Apply

from ..support.setups import EPS, cpu, in_order
from ..support.tolerance import as_array, check, largest_error

pytestmark = pytest.mark.usefixtures("by_every_instruction_set")

PLAIN = Apply(None, None, EPS)

WALKS = {
    "runs": ((8, 3, 1009), False),
    "runs, parts": ((67, 3, 1009), False),
    "runs, in pieces": ((3, 2, 20_011), False),
    "columns": ((64, 5, 37), False),
    "columns, channels last": ((16, 29, 149), True),
    "columns, parts": ((9, 29, 773), True),
    "columns, tiles": ((33, 1030, 5), True),
    "columns, tiles, channels first": ((150, 41, 49), False),
}


def noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def far_first_example(shape: tuple[int, ...]) -> Tensor:
    """0, and from the second example on 10⁴."""
    x = noise(shape) + 1e4
    x[0] = 0
    return x


def far_first_position(shape: tuple[int, ...]) -> Tensor:
    """The first positions of each example, which a run begins with, are far from the rest."""
    x = noise(shape) + 1e4
    x[..., :2] = -1e3
    return x


def drift(shape: tuple[int, ...]) -> Tensor:
    """Ever larger from the first example to the last, and within each."""
    examples, positions = torch.linspace(0, 1e4, shape[0]), torch.linspace(0, 1e3, shape[2])
    return noise(shape) + examples[:, None, None] + positions


def outlier_first(shape: tuple[int, ...]) -> Tensor:
    x = noise(shape)
    x[0, :, 0] = 1e6
    return x


def large_mean(shape: tuple[int, ...]) -> Tensor:
    return noise(shape) + 1e4


def canonical(data: Tensor, channels_last: bool) -> Tensor:
    return in_order(data[None], channels_last)


def check_variance(x: Tensor, mask: Tensor | None = None) -> None:
    """Relative error of each channel's variance below 1e-6, of its mean below 1e-6 of its spread."""
    moments = cpu.moments(x, mask)
    expected = reference.statistics(as_array(x[0]), None if mask is None else mask[0].numpy())
    assert np.array_equal(moments.count[0].numpy(), expected.count)
    assert np.abs(moments.var[0].numpy() / expected.var - 1).max() < 1e-6
    assert (np.abs(moments.mean[0].numpy() - expected.mean) / np.sqrt(expected.var)).max() < 1e-6


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("data", [far_first_example, far_first_position, drift, outlier_first, large_mean])
def test_adversarial_data(walk: str, data: Callable[[tuple[int, ...]], Tensor]) -> None:
    shape, channels_last = WALKS[walk]
    check_variance(canonical(data(shape), channels_last))


@pytest.mark.parametrize("walk", WALKS)
def test_nothing_real_at_first(walk: str) -> None:
    """The first half is padding, so that what comes first says nothing about a mean of 10⁴."""
    shape, channels_last = WALKS[walk]
    mask = torch.ones(1, shape[0], 1, shape[2], dtype=torch.bool)
    mask[:, : shape[0] // 2] = False
    check_variance(canonical(large_mean(shape), channels_last), mask)


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_constant_channel_has_no_spread(walk: str, dtype: torch.dtype) -> None:
    """Exactly 0, and exactly the constant as its mean; y is then exactly the bias."""
    shape, channels_last = WALKS[walk]
    constants = torch.tensor([3.3, -1e6, 1e-3, 0.1, 7e7])[torch.arange(shape[1]) % 5].to(dtype)
    x = canonical(constants[None, :, None].expand(shape), channels_last)
    y, moments = cpu.forward(x, PLAIN)
    assert not moments.m2.any()
    assert torch.equal(moments.mean[0], constants.double())
    assert not y.any()


def test_one_channel_of_millions() -> None:
    x = noise((1, 1, 1, 3_000_000)) + 1e4
    check_variance(x)
    check(cpu.forward(x, PLAIN)[0][0], reference.forward(as_array(x[0]), reference.Settings(eps=EPS))[0])


def test_thousands_of_channels_of_one_position() -> None:
    x = noise((1, 64, 4096, 1)) + torch.linspace(-1e4, 1e4, 4096)[:, None]
    check_variance(x)
    check(cpu.forward(x, PLAIN)[0][0], reference.forward(as_array(x[0]), reference.Settings(eps=EPS))[0])


@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
def test_no_less_exact_than_torch(channels_last: bool) -> None:
    data = noise((8, 16, 112, 112)) + 100
    data = data.contiguous(memory_format=torch.channels_last) if channels_last else data
    expected = reference.forward(as_array(data), reference.Settings(eps=EPS))[0]
    theirs = F.batch_norm(data, None, None, training=True, eps=EPS)
    ours = cpu.forward(data.flatten(2)[None], PLAIN)[0][0].unflatten(2, (112, 112))
    assert largest_error(ours, expected) <= largest_error(theirs, expected)
