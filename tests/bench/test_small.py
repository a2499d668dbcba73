"""Small tensors: what is timed, and beside whom."""

from __future__ import annotations

import pytest

from steadynorm.bench import small
from steadynorm.bench.cases import INFERENCE, PLAIN, RELU, TRAINING
from steadynorm.bench.timing import in_batches

from .rows import small_row, timings


def test_keys() -> None:
    whole = small.keys(quick=False)
    assert len(whole) == 8 and {key["mode"] for key in whole} == {TRAINING, INFERENCE}
    assert all(key in whole for key in small.keys(quick=True))


@pytest.mark.parametrize(("epilogue", "providers"), [(PLAIN, 2), (RELU, 3)])
@pytest.mark.parametrize("mode", [TRAINING, INFERENCE])
def test_measured(epilogue: str, providers: int, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small, "in_batches", lambda steps: in_batches(steps, milliseconds=0.01, rounds=2))
    (row,) = small.measure([4, 3], epilogue, mode)
    assert len(row["timings"]) == providers and row["timings"]["steadynorm"]["rounds"] == 2
    assert len(small.table([row])[0]) == len(small.HEADER)


def test_microseconds_beside_torch() -> None:
    plain = small_row(0.15, epilogue=PLAIN, timings=timings(steadynorm=0.1, torch=0.15))
    assert small.table([small_row(0.154), plain]) == [
        ("(60, 100)", RELU, TRAINING, "154", "154", "100", "1.54", "1.54"),
        ("(60, 100)", PLAIN, TRAINING, "150", "", "100", "1.50", ""),
    ]
    assert small.ratio([small_row(0.154)], (60, 100), RELU, TRAINING) == pytest.approx(1.54)
    assert small.ratio([small_row(0.154)], (60, 100), RELU, INFERENCE) is None
