"""The compiled core's arithmetic on one value: smooth activations in float32, conversions of 16-bit values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from steadynorm.kernels import Apply, cpu
from steadynorm.kernels.running import Running

pytestmark = pytest.mark.usefixtures("by_every_instruction_set")


def activated(z: Tensor, activation: str | None) -> Tensor:
    """The activation of each value: a normalization that changes nothing comes before it."""
    x = z[None, None].contiguous()
    return cpu.normalize(x, torch.zeros(1), torch.ones(1), Apply(None, None, 0.0, activation=activation))[0, 0]


def derivative(z: Tensor, activation: str) -> Tensor:
    x = z[None, None].contiguous()
    apply = Apply(None, None, 0.0, activation=activation)
    return cpu.backward(torch.ones_like(x), x, torch.zeros(1), torch.ones(1), apply).x[0, 0]


def points() -> Tensor:
    """Everywhere from -200 to 200, closer together near 0, and the ends of the float32 range."""
    limits = np.finfo(np.float32)
    small = np.float32(10.0) ** np.arange(-37, 0, dtype=np.float32)
    ends = np.array([0, limits.tiny, limits.max, np.inf, np.nan], np.float32)
    spread = [np.linspace(-limit, limit, 20_001, dtype=np.float32) for limit in (1, 10, 200)]
    return torch.from_numpy(np.concatenate([*spread, small, -small, ends, -ends]))


def normal(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z * z) / (2 * torch.pi) ** 0.5


EXACT: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "sigmoid": (torch.sigmoid, lambda z: torch.sigmoid(z) * torch.sigmoid(-z)),
    "tanh": (torch.tanh, lambda z: 1 - torch.tanh(z) ** 2),
    "silu": (
        lambda z: z * torch.sigmoid(z),
        lambda z: torch.sigmoid(z) * (1 + z * torch.sigmoid(-z)),
    ),
    "gelu": (lambda z: z * torch.special.ndtr(z), lambda z: torch.special.ndtr(z) + z * normal(z)),
    "hardswish": (
        lambda z: z * (z + 3).clamp(0, 6) / 6,
        lambda z: torch.where(z <= -3, 0, torch.where(z >= 3, 1, z / 3 + 0.5)),
    ),
}
"""Activations and their derivatives, in float64."""


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 3e-7), (torch.float64, 1e-15)])
@pytest.mark.parametrize("which", ["value", "derivative"])
def test_smooth_activations(name: str, dtype: torch.dtype, allowed: float, which: str) -> None:
    """Within roundings of the largest of 1 and the value; a derivative multiplies small differences by z."""
    z = points().to(dtype)
    z = z[z.isfinite() & (z.abs() < 1e18)]
    exact = EXACT[name][which == "derivative"](z.double())
    found = (activated if which == "value" else derivative)(z, name).double()
    assert ((found - exact).abs() / exact.abs().clamp(min=1)).max() <= allowed * (8 if which == "derivative" else 1)


@pytest.mark.parametrize("name", ["sigmoid", "tanh"])
def test_ends_of_the_range(name: str) -> None:
    z = points()
    exact = EXACT[name][0](z.double())
    found = activated(z, name)
    assert torch.equal(found.isnan(), z.isnan())
    assert (found.double() - exact).nan_to_num().abs().max() <= 2e-7


def test_tanh_is_odd_and_exact_near_zero() -> None:
    """Relative, not absolute: e^2z - 1 does not cancel."""
    z = torch.logspace(-30, 0, 1001, dtype=torch.float32)
    exact = torch.tanh(z.double())
    assert (activated(z, "tanh").double() / exact - 1).abs().max() <= 1e-6
    assert (activated(-z, "tanh").double() / -exact - 1).abs().max() <= 1e-6


HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)


@HALVES
def test_every_16_bit_value_survives(dtype: torch.dtype) -> None:
    values = torch.arange(1 << 16, dtype=torch.int32).short().view(dtype)
    found = activated(values, None)
    nan = values.isnan()
    zero = values == 0  # added to a shift of 0, -0 is 0
    assert torch.equal(found.view(torch.int16)[~nan & ~zero], values.view(torch.int16)[~nan & ~zero])
    assert torch.equal(found[zero], values[zero])
    assert found[nan].isnan().all()


@HALVES
def test_rounding_is_torchs(dtype: torch.dtype) -> None:
    """Of finite float32 values of every exponent, and of values halfway between two of 16 bits.

    A float32 value comes into the kernel as 1 * scale: the weight of its channel.
    """
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(1 << 31), 1 << 31, (1 << 18,), generator=generator).int()
    every = torch.arange(1 << 16, dtype=torch.int32).short().view(dtype).float()
    halfway = (every[:-1] + every[1:]) / 2
    single = torch.cat([bits.view(torch.float32), torch.randn(1 << 16, generator=generator) * 100, every, halfway])
    single = single[single.isfinite()]
    x = torch.ones(1, len(single), dtype=dtype)
    apply = Apply(single, None, 0.0)
    ours = cpu.normalize(x, torch.zeros(len(single)), torch.ones(len(single)), apply)[0]
    theirs = single.to(dtype)
    assert torch.equal(ours.view(torch.int16)[single != 0], theirs.view(torch.int16)[single != 0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 3), (7, 5), (5, 3, 6), (4, 3, 37), (1, 2, 5001), (33, 300), (2, 1030)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
def test_signs_say_where_the_slope_is_1(dtype: torch.dtype, shape: tuple[int, ...], channels_last: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, residual = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    if channels_last:
        x, residual = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, residual))
    residual[0, 0] = torch.nan
    y, _, signs, _ = cpu.train(x, Apply(None, None, 1e-5, residual, None, "relu"), Running())
    assert signs is not None
    assert torch.equal(cpu.unpack_signs(signs, x, None), ~(y == 0))


@pytest.mark.parametrize("shape", [(9, 256, 5), (9, 64, 6), (40, 300), (5, 3, 37)], ids=str)
@pytest.mark.parametrize("channels_last", [False, True], ids=["channels first", "channels last"])
def test_signs_beside_a_mask(shape: tuple[int, ...], channels_last: bool) -> None:
    """Where there is one, rows may be cut otherwise, and so may be the signs."""
    generator = torch.Generator().manual_seed(0)
    x, residual, dy = (torch.randn(shape, generator=generator) for _ in range(3))
    mask = torch.rand(shape[0], 1, *shape[2:], generator=generator) < 0.7
    if channels_last:
        x, residual, dy = (t.movedim(1, -1).contiguous().movedim(-1, 1) for t in (x, residual, dy))
    apply = Apply(None, None, 1e-5, residual, mask, "relu")
    y, kept, signs, _ = cpu.train(x, apply, Running())
    assert signs is not None
    slopes = ~(y == 0)
    assert torch.equal(cpu.unpack_signs(signs, x, mask) & mask, slopes)
    *_, dresidual = cpu.train_backward(dy, x, kept, apply._replace(residual=None), signs, True)
    assert dresidual is not None and torch.equal(dresidual, dy * slopes)
