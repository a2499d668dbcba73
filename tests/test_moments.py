"""Moments: measured from data, merged from parts."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from steadynorm import Moments, reference
from steadynorm.moments import measure

from .support.marks import TORCH_JIT_WARNS
from .support.tolerance import as_array

DOUBLE = torch.float64
ROUNDINGS = 4
"""Rounding steps granted to each of n terms; errors of n terms add up like sqrt(n)."""


def expect(moments: Moments, data: Tensor, mask: Tensor | None = None, working: torch.dtype = DOUBLE) -> None:
    """`moments` are those of each channel's real values, gathered one channel at a time and measured in float64.

    What is left after subtracting the mean as `working` holds it is the spread and one rounding step of the mean;
    only that is summed in `working`, so only its rounding is granted.
    """
    real = (torch.ones_like(data, dtype=torch.bool) if mask is None else mask.expand_as(data)).numpy()
    eps = torch.finfo(working).eps
    for channel, values in enumerate(as_array(data).swapaxes(0, 1)):
        values = values[real.swapaxes(0, 1)[channel]]
        count, mean, m2 = (float(t[channel]) for t in (moments.count, moments.mean, moments.m2))
        number = max(values.size, 1)
        expected = values.mean() if values.size else 0.0
        step = eps * abs(expected)
        rounding = ROUNDINGS * eps * number**0.5
        assert count == values.size
        assert abs(mean - expected) <= rounding * (values.std() if values.size else 0) + (rounding + 1e-15) * step + (
            2.3e-16 * abs(expected)
        )
        expected_m2 = ((values - expected) ** 2).sum()
        assert abs(m2 - expected_m2) <= rounding * (expected_m2 + number * step**2)
        assert m2 >= 0


def normal(*shape: int, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) * std + mean


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(64, 3), (8, 3, 17), (4, 3, 5, 6), (2, 3, 4, 3, 2), (1, 3), (5, 1, 4)])
@pytest.mark.parametrize("masked", [False, True])
def test_from_data(shape: tuple[int, ...], dtype: torch.dtype, masked: bool) -> None:
    data = normal(*shape, mean=3.0).to(dtype)
    mask = normal(shape[0], 1, *shape[2:], seed=1) < 0.5 if masked else None
    moments = Moments.from_data(data, mask=mask)
    assert {t.dtype for t in (moments.count, moments.mean, moments.m2)} == {DOUBLE}
    expect(moments, data, mask, DOUBLE if dtype == DOUBLE else torch.float32)


@pytest.mark.parametrize("order", ["contiguous", "channels last"])
@pytest.mark.parametrize("masked", [False, True])
def test_large_mean(order: str, masked: bool) -> None:
    """Mean 1e6, standard deviation 1e-2 in float32, which holds only multiples of 1/16 there: as exact as mean 0."""
    data = normal(16, 4, 20, 20, mean=1e6, std=1e-2).float()
    data[:, 1] += normal(16, 20, 20, std=10.0, seed=1).float()
    if order == "channels last":
        data = data.to(memory_format=torch.channels_last)
    mask = normal(16, 1, 20, 20, seed=2) < 1 if masked else None
    expect(Moments.from_data(data, mask=mask), data, mask, torch.float32)


def test_mask_forms() -> None:
    """One flag an example, one a position, and one an element measure the same where they mean the same."""
    data = normal(4, 3, 5, mean=2.0)
    examples = torch.tensor([True, False, True, True])
    for mask in (examples[:, None, None], examples[:, None, None].expand(4, 1, 5)):
        expect(Moments.from_data(data, mask=mask), data, mask)
    positions = (torch.arange(5) < 3)[None, None]
    expect(Moments.from_data(data, mask=positions), data, positions)


def test_what_the_mask_leaves_out_does_not_matter() -> None:
    data, mask = normal(6, 2, 4), normal(6, 1, 4, seed=1) < 0
    for rubbish in (1e30, torch.inf, torch.nan):
        moments = Moments.from_data(torch.where(mask, data, rubbish), mask=mask)
        expect(moments, data, mask)


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (4, 3, 0)])
def test_no_value(shape: tuple[int, ...]) -> None:
    moments = Moments.from_data(torch.empty(shape))
    for values in (moments.count, moments.mean, moments.m2, moments.var):
        assert values.tolist() == [0, 0, 0]
    assert moments.var_unbiased.isnan().all()


def test_nothing_real() -> None:
    moments = Moments.from_data(torch.full((4, 2, 3), torch.nan), mask=torch.zeros(4, 1, 3, dtype=torch.bool))
    for values in (moments.count, moments.mean, moments.m2, moments.var):
        assert values.tolist() == [0, 0]


def test_not_finite() -> None:
    """A nan or inf reaches its channel's mean and no other channel."""
    data = normal(5, 3)
    data[2, 0], data[3, 1] = torch.nan, torch.inf
    moments = Moments.from_data(data)
    assert moments.mean.isfinite().tolist() == [False, False, True]
    assert moments.m2.isfinite().tolist() == [False, False, True]
    expect(Moments(*(t[2:] for t in (moments.count, moments.mean, moments.m2))), data[:, 2:])


def test_variances() -> None:
    """Counts 0, 1, 2, 4: var divides by n and var_unbiased by n - 1, which is nan below two values."""
    moments = Moments(*(torch.tensor(v, dtype=DOUBLE) for v in ([0, 1, 2, 4], [0, 7, 1, 3], [0, 0, 2, 14])))
    assert moments.var.tolist() == [0, 0, 1, 3.5]
    assert moments.var_unbiased[:2].isnan().all()
    assert moments.var_unbiased[2:].tolist() == [2, 14 / 3]


def test_measured_variances() -> None:
    data = normal(9, 2, 5, mean=4.0)
    moments = Moments.from_data(data)
    values = as_array(data).swapaxes(0, 1).reshape(2, -1)
    np.testing.assert_allclose(moments.var, values.var(axis=1), rtol=1e-14)
    np.testing.assert_allclose(moments.var_unbiased, values.var(axis=1, ddof=1), rtol=1e-14)


def test_remaining_dimensions() -> None:
    """Any dimensions may share statistics: here those of (G, N, C, L) that leave (G, C)."""
    data = normal(3, 4, 2, 5)
    moments = measure(data, dims=[1, 3])
    for group in range(3):
        expect(Moments(moments.count[group], moments.mean[group], moments.m2[group]), data[group])


def test_own_memory() -> None:
    """No statistic is a view in which channels share one element, so that each can be changed in place."""
    mask = torch.ones(4, 1, 3, dtype=torch.bool)
    for moments in (Moments.from_data(normal(4, 3, 3)), Moments.from_data(normal(4, 3, 3), mask=mask)):
        assert all(t.is_contiguous() for t in (moments.count, moments.mean, moments.m2))


@TORCH_JIT_WARNS
@pytest.mark.parametrize("masked", [False, True])
def test_differentiable_twice(masked: bool) -> None:
    data = normal(4, 2, 3, mean=5.0).requires_grad_()
    mask = torch.arange(12).reshape(4, 1, 3) % 3 != 1 if masked else None

    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        moments = Moments.from_data(x, mask=mask)
        return moments.mean, moments.m2

    assert gradcheck(statistics, data, check_forward_ad=True)
    assert gradgradcheck(statistics, data)


def test_frozen() -> None:
    moments = Moments.from_data(normal(3, 2))
    with pytest.raises(FrozenInstanceError):
        moments.count = moments.mean  # type: ignore[misc]


# ---- merging ----


def test_merge_of_nothing() -> None:
    with pytest.raises(ValueError, match=r"Moments\.merge: expected at least one part, got none"):
        Moments.merge([])


def agree(ours: Moments, theirs: Moments, data: Tensor) -> None:
    """Equal up to float64 rounding of the data's largest value, which every part's mean carries."""
    assert torch.equal(ours.count, theirs.count)
    step = 8 * torch.finfo(DOUBLE).eps * float(data.abs().max()) if data.numel() else 0.0
    assert ((ours.mean - theirs.mean).abs() <= step).all()
    spread = (theirs.m2 * theirs.count).sqrt()  # the sum of |distance from the mean|, at most
    assert ((ours.m2 - theirs.m2).abs() <= 4 * step * spread + theirs.count * step**2 + 1e-13 * theirs.m2).all()


@st.composite
def split_batches(draw: st.DrawFn, parts: int | None = None) -> tuple[Tensor, list[Tensor]]:
    """A batch (N, 3) and the same batch cut anywhere, also into empty parts; values of any scale and offset."""
    size = draw(st.integers(0, 30))
    std, mean = draw(st.sampled_from([0.0, 1e-3, 1.0, 1e3])), draw(st.sampled_from([0.0, -7.0, 1e5]))
    data = normal(size, 3, mean=mean, std=std, seed=draw(st.integers(0, 2**16)))
    number = draw(st.integers(1, 6)) if parts is None else parts
    cuts = sorted(draw(st.lists(st.integers(0, size), min_size=number - 1, max_size=number - 1)))
    bounds = [0, *cuts, size]
    return data, [data[start:stop] for start, stop in pairwise(bounds)]


@given(split_batches())
def test_merge_is_the_union(batch: tuple[Tensor, list[Tensor]]) -> None:
    """However a batch is cut, its parts merge to its own moments, which are the reference's."""
    data, parts = batch
    merged = Moments.merge(Moments.from_data(part) for part in parts)
    agree(merged, Moments.from_data(data), data)
    oracle = reference.statistics(data.numpy())
    count, mean, var = (torch.from_numpy(a) for a in (oracle.count, oracle.mean, oracle.var))
    agree(merged, Moments(count, mean, var * count), data)


@given(split_batches(), st.randoms(use_true_random=False))
def test_merge_in_any_order(batch: tuple[Tensor, list[Tensor]], random: object) -> None:
    data, parts = batch
    moments = [Moments.from_data(part) for part in parts]
    shuffled = moments.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    agree(Moments.merge(shuffled), Moments.merge(moments), data)


@given(split_batches(parts=3))
def test_merge_in_any_grouping(batch: tuple[Tensor, list[Tensor]]) -> None:
    data, parts = batch
    a, b, c = (Moments.from_data(part) for part in parts)
    together = Moments.merge([a, b, c])
    agree(Moments.merge([Moments.merge([a, b]), c]), together, data)
    agree(Moments.merge([a, Moments.merge([b, c])]), together, data)


@given(split_batches(parts=1), st.integers(0, 2), st.integers(0, 2))
def test_empty_parts_change_no_bit(batch: tuple[Tensor, list[Tensor]], before: int, after: int) -> None:
    whole, empty = Moments.from_data(batch[0]), Moments.from_data(torch.empty(0, 3, dtype=DOUBLE))
    merged = Moments.merge([*[empty] * before, whole, *[empty] * after])
    assert torch.equal(merged.count, whole.count)
    assert torch.equal(merged.mean, whole.mean)
    assert torch.equal(merged.m2, whole.m2)


def test_channels_empty_in_some_parts() -> None:
    """Each channel merges by its own counts."""
    a = Moments(*(torch.tensor(v, dtype=DOUBLE) for v in ([2, 0], [1, 0], [8, 0])))
    b = Moments(*(torch.tensor(v, dtype=DOUBLE) for v in ([2, 3], [5, 4], [0, 6])))
    merged = Moments.merge([a, b])
    assert merged.count.tolist() == [4, 3]
    assert merged.mean.tolist() == [3, 4]
    assert merged.m2.tolist() == [8 + 2 * 4 + 2 * 4, 6]


def test_merge_of_groups() -> None:
    """Moments of shape (G, C) merge group by group."""
    data = normal(2, 10, 3, 4)
    merged = Moments.merge(measure(part, dims=[1, 3]) for part in data.split([3, 7], dim=1))
    for group in range(2):
        part = Moments(merged.count[group], merged.mean[group], merged.m2[group])
        agree(part, Moments.from_data(data[group]), data[group])
