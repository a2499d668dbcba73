"""Rows of a benchmark, made by hand."""

from __future__ import annotations

from typing import Any

from steadynorm.bench.cases import FIRST, FORWARD, INFERENCE, LAST, PLAIN, RELU, RESNET50, TRAINING, Case
from steadynorm.bench.cold import BACKWARD
from steadynorm.bench.record import Benchmark


def timings(**medians: float) -> dict[str, dict[str, float]]:
    """Undisturbed, every round the same; the names with spaces for underscores."""
    return {name.replace("_", " "): timing(median) for name, median in medians.items()}


def timing(median: float, low: float | None = None, high: float | None = None) -> dict[str, float]:
    low, high = low or median, high or median
    return {"best": low, "low": low, "median": median, "high": high, "rounds": 5}


def row(median: float, shape: tuple[int, ...] = (2, 3, 4, 4), **changes: object) -> dict[str, Any]:
    """A measured case in which ours takes 2 ms and torch `median`."""
    return {
        **Case(shape, FIRST, "float32", RELU, TRAINING)._asdict(),
        "shape": list(shape),
        "megabytes": 100.0,
        "floor_ms": 1.5,
        "timings": timings(copy=1.0, steadynorm=2.0, torch=median, torch_in_place=median),
        "errors": {"steadynorm": {"dx": 2e-7}, "torch": {"dx": 1e-7}},
        **changes,
    }


def cold_rows(
    ours: float, theirs: float, order: str = FIRST, count: int = 1, **changes: object
) -> list[dict[str, Any]]:
    """A layer of 10 MB, of which 80 MB must move each way; backward takes twice the time of forward."""
    return [
        {
            **{"shape": [16, 64, 80, 80], "order": order, "epilogue": RELU, "count": count, "mode": mode},
            **{"megabytes": 10.0, "moved_megabytes": 80.0, "copy_gb_s": 20.0, "autograd_ms": 0.3},
            **{"timings": timings(steadynorm=times * ours, torch=times * theirs)},
            **changes,
        }
        for mode, times in ((FORWARD, 1), (BACKWARD, 2))
    ]


def small_row(median: float, **changes: object) -> dict[str, Any]:
    """(60, 100) with ReLU, forward and backward: ours takes 0.1 ms."""
    times = timings(steadynorm=0.1, torch=median, torch_in_place=median)
    return {"shape": [60, 100], "epilogue": RELU, "mode": TRAINING, "timings": times, **changes}


def fresh_row(**changes: object) -> dict[str, Any]:
    """0.2 seconds and 8 MB beyond torch's."""
    memory = {"steadynorm": 258.0, "torch": 250.0}
    times = timings(steadynorm=400.0, torch=200.0)
    row = {"what": "first step", "processes": 5, "timings": times, "resident_megabytes": memory}
    return {**row, "peak_megabytes": memory, **changes}


def exactness_row(**changes: object) -> dict[str, Any]:
    errors = {"steadynorm": {"y": 8e-7, "dx": 5e-7}, "torch": {"y": 3.9, "dx": 1.2}}
    row = {"shape": [32, 64, 112, 112], "order": "channels last", "mean": 1e4, "errors": errors}
    return {**row, "largest": {"y": 5.3, "dx": 4.5}, **changes}


def full() -> Benchmark:
    """A benchmark with rows of every kind."""
    both = [FIRST, LAST]
    steps = timings(steadynorm=112.0, torch=120.0, no_BN=100.0)
    shape = RESNET50[0]
    return Benchmark(
        {"processor": "a processor", "threads": "2", "torch": "2.13.0", "memory": "kept"},
        cold=[*cold_rows(1.0, 2.5), *cold_rows(1.0, 1.5, LAST)],
        small=[small_row(0.15, shape=s, epilogue=e) for s in ([60, 100], [128, 1024]) for e in (PLAIN, RELU)],
        cases=[
            row(5.0, shape, order=order, dtype=dtype, mode=mode)
            for order in both
            for dtype in ("float32", "bfloat16")
            for mode in (FORWARD, TRAINING, INFERENCE)
        ],
        fresh=[fresh_row()],
        networks=[
            {"depth": 50, "batch": 16, "pixels": 160, "order": order, "mode": "training", "timings": steps}
            for order in both
        ],
        exactness=[exactness_row()],
        relatives=[
            {
                "shape": [32, 64, 56, 56],
                "order": FIRST,
                "timings": {**timings(steadynorm=1.0), "mask, 3 of 4 real": timings(m=1.1)["m"]},
            }
        ],
        folding=[
            {
                "network": "ResNet-50",
                "batch": 16,
                "pixels": 160,
                "order": FIRST,
                "timings": timings(folded=1.0, torch=2.0),
            }
        ],
        studies=[{"what": "MNIST CNN", "size": 64, "timings": timings(steadynorm=2.0, torch=3.0)}],
        install=[{"what": "pip install", "seconds": 4.4}],
        peers=[{"framework": "tensorflow", "shape": list(shape), "mode": TRAINING, "median": 6.0}],
    )
