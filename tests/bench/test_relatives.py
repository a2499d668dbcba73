"""What masks, control of statistics and the relatives cost: they are what they are named, and are summed up."""

from __future__ import annotations

import pytest
import torch

from steadynorm.bench import relatives, summary
from steadynorm.bench.cases import FIRST, LAST
from steadynorm.bench.providers import OURS
from steadynorm.bench.record import Benchmark


@pytest.mark.parametrize("order", [FIRST, LAST])
def test_what_changes_nothing_gives_the_same_gradients(order: str) -> None:
    """Held, guarded and synchronized by one rank, dx is the plain layer's; by masks and ghosts it is another."""
    found = {name: step()[0] for name, step in relatives.steps([8, 3, 5, 6], order).items()}  # type: ignore[index]
    for name in (relatives.HELD, relatives.GUARDED, relatives.SYNC):
        torch.testing.assert_close(found[name], found[OURS])
    for name in (relatives.MASK, relatives.GHOST, relatives.RENORM, relatives.FROZEN):
        assert not torch.allclose(found[name], found[OURS]), name


def test_times_beside_the_plain_layer() -> None:
    timings = {OURS: {"median": 2.0}, relatives.MASK: {"median": 3.0}}
    rows = [{"shape": [2, 3, 4, 5], "order": FIRST, "timings": timings}]
    header, table = summary.relatives(Benchmark({}, relatives=rows))
    assert header[1] == "(2, 3, 4, 5) channels first"
    assert table == [(relatives.MASK, "1.50")]
    assert summary.relatives(Benchmark({}))[1] == []


def test_quick_is_less() -> None:
    assert len(relatives.keys(quick=True)) < len(relatives.keys(quick=False))
