"""What holds for every input: permutations, shifts and scales, and the identity that weight and bias can restore."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from steadynorm.functional import batch_norm

SEEDS = st.integers(0, 2**31)
SIZES = st.tuples(st.integers(2, 9), st.integers(1, 4), st.integers(1, 6))


def draw(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3 + 2


def normalized(x: Tensor, eps: float = 1e-5, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return batch_norm(x, None, None, weight, bias, training=True, eps=eps)


def same(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@given(SIZES, SEEDS)
def test_permuting_the_batch_permutes_the_output(shape: tuple[int, ...], seed: int) -> None:
    x, order = draw(shape, seed), torch.randperm(shape[0], generator=torch.Generator().manual_seed(seed))
    same(normalized(x[order]), normalized(x)[order])


@given(SIZES, SEEDS, st.floats(-100, 100).filter(lambda scale: abs(scale) > 0.01), st.floats(-100, 100))
def test_scale_and_shift_of_the_input_leave_only_their_sign(
    shape: tuple[int, ...], seed: int, scale: float, shift: float
) -> None:
    """BN(a x + b) = sign(a) BN(x), once eps is scaled along."""
    x = draw(shape, seed)
    same(normalized(scale * x + shift, eps=1e-3 * scale**2), (1 if scale > 0 else -1) * normalized(x, eps=1e-3))


@given(SIZES, SEEDS)
def test_output_has_mean_zero_and_variance_just_below_one(shape: tuple[int, ...], seed: int) -> None:
    """The variance is var / (var + eps)."""
    x = draw(shape, seed)
    y = normalized(x, eps=0.1)
    var = x.var((0, 2), correction=0)
    same(y.mean((0, 2)), torch.zeros_like(var))
    same(y.var((0, 2), correction=0), var / (var + 0.1))


@given(SIZES, SEEDS)
def test_weight_and_bias_can_undo_it(shape: tuple[int, ...], seed: int) -> None:
    """With gamma = sqrt(var + eps) and beta = mean the layer is the identity (Ioffe & Szegedy 2015, sec. 3)."""
    x = draw(shape, seed)
    weight, bias = (x.var((0, 2), correction=0) + 1e-5).sqrt(), x.mean((0, 2))
    same(normalized(x, weight=weight, bias=bias), x)


@given(SIZES, SEEDS, st.floats(-100, 100))
def test_a_bias_before_it_is_redundant(shape: tuple[int, ...], seed: int, bias: float) -> None:
    x = draw(shape, seed)
    same(normalized(x + bias), normalized(x))
