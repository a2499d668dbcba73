"""Populations: merged from parts in any order, within and over batches, and between ranks."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import steadynorm as sn
from steadynorm.statistics.population import Comoments, Population, measured

from ..support.twins import agree, normal


def whole(x: Tensor) -> tuple[Tensor, Tensor]:
    values = x.movedim(1, 0).flatten(1)
    return values.mean(1), torch.stack([values[:2].cov(), values[2:].cov()])


def populations(x: Tensor, sizes: list[int]) -> list[Population]:
    layer = sn.WhiteningBatchNorm(4, 2).double()
    found = [measured(layer, part, None) for part in x.split(sizes)]
    return [Population.of_batch(part) for part in found if part is not None]


@settings(max_examples=30)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=6).filter(lambda sizes: sum(sizes) > 2), st.randoms())
def test_covariances_of_parts_merge_exactly(sizes: list[int], random) -> None:
    """In any order, one by one or all at once, empty parts among them."""
    x = normal(sum(sizes), 4, 3)
    parts = populations(x, sizes)
    random.shuffle(parts)
    one_by_one = parts[0]
    for part in parts[1:]:
        one_by_one = Population.merge([one_by_one, part])
    for merged in (one_by_one, Population.merge(parts)):
        assert isinstance(merged.pooled, Comoments)
        agree(merged.estimate("pooled"), whole(x), rtol=1e-10, atol=1e-10)
        assert merged.batches == len(sizes)
        assert merged.pooled.count.tolist() == [x.numel() // 4] * 4


def test_a_large_mean_does_not_cancel() -> None:
    x = normal(60, 4, 3) + 1e7
    merged = Population.merge(populations(x, [1, 40, 19]))
    agree(merged.estimate("pooled"), whole(x), rtol=1e-7)


def test_packed_for_other_ranks() -> None:
    layer = sn.BatchNorm1d(4).double()
    for of_layer in (populations(normal(9, 4, 3), [5, 4]), [Population.of_batch(measured(layer, normal(9, 4), None))]):  # type: ignore[arg-type]
        merged, none = Population.merge(of_layer), of_layer[0]
        again = none.unpacked(merged.packed())
        assert type(again.pooled) is type(merged.pooled)
        assert again.batches == merged.batches
        for estimator in ("pooled", "paper"):
            agree(again.estimate(estimator), merged.estimate(estimator), rtol=0, atol=0)
