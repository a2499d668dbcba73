"""Rows of a benchmark, made by hand."""

from __future__ import annotations

from steadynorm.bench.cases import FIRST, RELU, TRAINING, Case


def row(median: float, shape: tuple[int, ...] = (2, 3, 4, 4), **changes: object) -> dict:
    """A measured case in which ours takes 2 ms and torch `median`."""
    timings = {"copy": 1.0, "steadynorm": 2.0, "torch": median, "torch in place": median}
    return {
        **Case(shape, FIRST, "float32", RELU, TRAINING)._asdict(),
        "shape": list(shape),
        "megabytes": 100.0,
        "floor_ms": 1.5,
        "timings": {
            name: {"median": value, "low": value, "high": value, "rounds": 5} for name, value in timings.items()
        },
        "errors": {"steadynorm": {"dx": 2e-7}, "torch": {"dx": 1e-7}},
        **changes,
    }
