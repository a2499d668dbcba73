"""What a benchmark shows: ratios to each peer, shares of the memory's speed, errors."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .cases import INFERENCE, LAST, RELU, TRAINING
from .jobs import CNN_WITH, CNN_WITHOUT, COPY
from .networks import NONE
from .providers import IN_PLACE, OURS, TORCH
from .record import Benchmark
from .studies import CNN
from .timing import UNSTEADY, Timing

HEADER = ("order", "dtype", "epilogue", "mode", "peer", "times as fast", "worst", "cases")
NETWORK_HEADER = ("network", "order", "mode", "no BN, ms", "ours", "torch", "costs", "torch's", "peak MB")
BIG = 50.0
"""Megabytes from which on no cache holds a tensor."""
AS_FAST = 0.95
"""What a comparison must reach to count as no slower, as a run differs from the next."""


class Comparison(NamedTuple):
    """A case beside a peer: how many times as fast as the peer ours is."""

    ratio: float
    shape: tuple[int, ...]
    order: str
    dtype: str
    epilogue: str
    mode: str
    peer: str

    def __str__(self) -> str:
        return (
            f"{self.shape}, {self.order}, {self.dtype}, {self.epilogue}, {self.mode}: {self.ratio:.2f} of {self.peer}"
        )


def ratios(row: dict[str, Any]) -> dict[str, float]:
    """How many times as fast as each peer ours is."""
    timings = row["timings"]
    return {
        peer: timing["median"] / timings[OURS]["median"]
        for peer, timing in timings.items()
        if peer not in (OURS, COPY, NONE)
    }


def comparisons(benchmark: Benchmark) -> list[Comparison]:
    """Every case of the grid beside every peer that was timed with it."""
    return [
        Comparison(ratio, tuple(row["shape"]), row["order"], row["dtype"], row["epilogue"], row["mode"], peer)
        for row in benchmark.cases
        for peer, ratio in ratios(row).items()
    ]


def slower(benchmark: Benchmark, below: float = AS_FAST) -> list[Comparison]:
    """The comparisons whose ratio is below `below`, the worst first."""
    return sorted(found for found in comparisons(benchmark) if found.ratio < below)


def unsteady(benchmark: Benchmark) -> list[str]:
    """The grid's timings that something else disturbed, see `timing.UNSTEADY`, each with its range."""
    lines = []
    for row in benchmark.cases:
        for name, values in row["timings"].items():
            timing = Timing(**values)
            if timing.spread > UNSTEADY and name != COPY:
                where = f"{tuple(row['shape'])}, {row['order']}, {row['dtype']}, {row['epilogue']}, {row['mode']}"
                lines.append(f"{where}, {name}: {timing.median:.3g} ms ({timing.low:.3g} to {timing.high:.3g})")
    return lines


def groups(benchmark: Benchmark) -> list[tuple[str, ...]]:
    """Geometric mean and worst of the ratios over the shapes, for everything else fixed."""
    return [
        (*key, f"{geometric_mean(values):.2f}", f"{min(values):.2f}", str(len(values)))
        for key, values in grouped(benchmark).items()
    ]


def grouped(benchmark: Benchmark, shapes: list[tuple[int, ...]] | None = None) -> dict[tuple[str, ...], list[float]]:
    """The ratios of `shapes`, or of all, by order, dtype, epilogue, mode and peer; other frameworks too."""
    found: dict[tuple[str, ...], list[float]] = {}
    for each in comparisons(benchmark):
        if shapes is None or each.shape in shapes:
            found.setdefault((each.order, each.dtype, each.epilogue, each.mode, each.peer), []).append(each.ratio)
    return found | _against_frameworks(benchmark)


def _against_frameworks(benchmark: Benchmark) -> dict[tuple[str, ...], list[float]]:
    ours = {
        (tuple(row["shape"]), row["mode"]): row["timings"][OURS]["median"]
        for row in benchmark.cases
        if row["order"] == LAST and row["dtype"] == "float32" and row["epilogue"] == RELU
    }
    found: dict[tuple[str, ...], list[float]] = {}
    for row in benchmark.peers:
        median = ours.get((tuple(row["shape"]), row["mode"]))
        if median is not None and row["median"] is not None:
            key = (LAST, "float32", RELU, row["mode"], row["framework"])
            found.setdefault(key, []).append(row["median"] / median)
    return found


def shares_of_memory_speed(benchmark: Benchmark) -> list[tuple[str, float]]:
    """Of tensors that no cache holds, float32 with ReLU in training: the time their bytes need, over ours."""
    return [
        (
            f"{tuple(row['shape'])}, {row['order']}, {row['mode']}",
            row["floor_ms"] / row["timings"][OURS]["median"],
        )
        for row in benchmark.cases
        if (row["dtype"], row["epilogue"]) == ("float32", RELU) and row["mode"] != INFERENCE and row["megabytes"] >= BIG
    ]


def worse_errors(benchmark: Benchmark) -> list[str]:
    """Cases where our largest error is above torch's."""
    return [
        f"{where}: {name} {ours:.1e}, torch's {theirs:.1e}"
        for where, name, ours, theirs in errors(benchmark)
        if ours > theirs
    ]


def errors(benchmark: Benchmark) -> list[tuple[str, str, float, float]]:
    """Case, tensor, and the largest errors of ours and of torch's, over the tensor's largest value."""
    return [
        (
            f"{tuple(row['shape'])}, {row['order']}, {row['dtype']}, {row['mode']}",
            *(name, error, row["errors"][TORCH][name]),
        )
        for row in benchmark.cases
        for name, error in row["errors"].get(OURS, {}).items()
    ]


def networks(benchmark: Benchmark) -> list[tuple[str, ...]]:
    """Milliseconds a step, what normalization adds to the network without it, and peak memory, ours and torch's."""
    result = []
    for row in benchmark.networks:
        none, ours, theirs = (row["timings"][name]["median"] for name in (NONE, OURS, TORCH))
        peaks = row.get("peak_megabytes")
        result.append(
            (
                f"ResNet-{row['depth']}",
                row["order"],
                row["mode"],
                f"{none:.0f}",
                f"{ours:.0f}",
                f"{theirs:.0f}",
                f"{ours / none - 1:+.0%}",
                f"{theirs / none - 1:+.0%}",
                f"{peaks[OURS]:.0f} / {peaks['torch']:.0f}" if peaks and peaks[OURS] else "",
            )
        )
    return result


def relatives(benchmark: Benchmark) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: time of forward and backward over the plain layer's, case by case."""
    header = ("beside BatchNorm2d", *(f"{tuple(row['shape'])} {row['order']}" for row in benchmark.relatives))
    names = [name for name in benchmark.relatives[0]["timings"] if name != OURS] if benchmark.relatives else []
    rows = [
        (
            name,
            *(f"{row['timings'][name]['median'] / row['timings'][OURS]['median']:.2f}" for row in benchmark.relatives),
        )
        for name in names
    ]
    return header, rows


def folding(benchmark: Benchmark) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: milliseconds of an inference with torch's norms, and how many times as fast the others are."""
    names = list(dict.fromkeys(name for row in benchmark.folding for name in row["timings"] if name != TORCH))
    rows = []
    for row in benchmark.folding:
        medians = {name: timing["median"] for name, timing in row["timings"].items()}
        ratios = (f"{medians[TORCH] / medians[name]:.2f}" if name in medians else "" for name in names)
        rows.append((row["network"], row["order"], f"{medians[TORCH]:.0f}", *ratios))
    return ("network", "order", "torch, ms", *names), rows


def studies(benchmark: Benchmark) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: milliseconds of a step of the CNN, or of a run of the grid, and of how many of ours or alone."""
    rows = []
    for row in benchmark.studies:
        medians = {name: timing["median"] for name, timing in row["timings"].items()}
        if row["what"] == CNN:
            medians |= {
                f"TensorFlow, {peer['mode']}": peer["median"]
                for peer in benchmark.peers
                if peer["framework"] == "tensorflow" and peer["mode"] in (CNN_WITH, CNN_WITHOUT)
            }
        first = next(iter(medians.values()))
        rows += [(row["what"], name, f"{value:.1f}", f"{value / first:.2f}") for name, value in medians.items()]
    return ("what", "by", "ms", "times the first"), rows


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


class Bar(NamedTuple):
    """A shape's ratio to a peer in the picture.

    Attributes:
        low, high: the quartiles of one over those of the other.
        steady: whether neither timing was disturbed, see `timing.UNSTEADY`.
    """

    ratio: float
    low: float
    high: float
    steady: bool


def bars(benchmark: Benchmark, order: str) -> tuple[list[str], list[Bar], list[Bar]]:
    """Labels, times as fast as torch, and as torch in place: float32, ReLU, forward+backward, shape by shape."""
    rows = [
        row
        for row in benchmark.cases
        if (row["order"], row["dtype"], row["epilogue"], row["mode"]) == (order, "float32", RELU, TRAINING)
    ]
    labels = ["×".join(map(str, row["shape"])) for row in rows]
    return labels, [_bar(row, TORCH) for row in rows], [_bar(row, IN_PLACE) for row in rows]


def _bar(row: dict[str, Any], peer: str) -> Bar:
    ours, theirs = (Timing(**row["timings"][name]) for name in (OURS, peer))
    steady = max(ours.spread, theirs.spread) <= UNSTEADY
    return Bar(theirs.median / ours.median, theirs.low / ours.high, theirs.high / ours.low, steady)
