"""SyncBatchNorm on two and three ranks: the reference on all their data together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ..support.launch import launch
from ..support.tolerance import check
from .cases import THREE, TWO, Case, expected, on_rank, peers

Found = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def found() -> Found:
    """What each rank made of each case."""
    results = {}
    for cases in (TWO, THREE):
        of_ranks = launch(on_rank, len(cases[0].shapes), cases)
        of_cases = zip(*of_ranks, strict=True)
        results.update({case.name: list(of_case) for case, of_case in zip(cases, of_cases, strict=True)})
    return results


@pytest.mark.parametrize("case", [*TWO, *THREE], ids=lambda case: case.name)
def test_as_one_process_on_all_data(case: Case, found: Found) -> None:
    """Output, gradients (of the parameters, each rank's own sums) and running statistics stay within the rule."""
    values_per_channel = max(1, sum(torch.Size(shape).numel() for shape in case.shapes) // case.shapes[0][1])
    for ours, reference, peer in zip(found[case.name], expected(case), peers(case), strict=True):
        assert ours["num_batches_tracked"] == 1
        for name in ours.keys() - {"num_batches_tracked"}:
            terms = values_per_channel if name in ("dweight", "dbias") else 1
            check(ours[name], reference[name], peer.get(name), terms=terms, working=case.parameters)


@pytest.mark.parametrize("case", [*TWO, *THREE], ids=lambda case: case.name)
def test_ranks_agree(case: Case, found: Found) -> None:
    """All have the same running statistics, bit for bit."""
    first, *others = ({k: v for k, v in ours.items() if "running" in k} for ours in found[case.name])
    for other in others:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_a_plain_mean_of_variances_would_be_wrong(found: Found) -> None:
    """Ranks whose means are 100 apart: variance 1 on each, 100² · 8 · 5 / 13² = 2,367 together."""
    running: Tensor = found["large means, far apart"][0]["running_var"]
    assert (running > 0.1 * 2000).all()
