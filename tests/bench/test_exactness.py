"""Errors at a large mean: measured on a small tensor, and said."""

from __future__ import annotations

import pytest

from steadynorm.bench import exactness
from steadynorm.bench.cases import FIRST, LAST

from .rows import exactness_row


@pytest.mark.parametrize("order", [FIRST, LAST])
def test_measured(order: str) -> None:
    """Ours are those of rounding; the true values are those of normal data."""
    (row,) = exactness.measure([4, 3, 8, 8], order, 1e4)
    assert all(0 < error < 1e-5 for error in row["errors"]["steadynorm"].values())
    assert all(error > 0 for error in row["errors"]["torch"].values())
    assert 1 < row["largest"]["y"] < 6
    assert len(exactness.table([row])) == 2


def test_times_as_exact() -> None:
    first, second = exactness.table([exactness_row()])
    assert first == ("10000", "(32, 64, 112, 112)", LAST, "y", "5.3", "3.9e+00", "8.0e-07", "4,875,000")
    assert second[3] == "dx"
    assert exactness.largest_errors([exactness_row()], LAST) == (3.9, 8e-7)
    assert exactness.largest_errors([exactness_row()], FIRST) is None


def test_keys() -> None:
    assert [key["order"] for key in exactness.keys(quick=False)] == [FIRST, LAST]
    assert exactness.keys(quick=True)[0]["shape"] != exactness.keys(quick=False)[0]["shape"]
