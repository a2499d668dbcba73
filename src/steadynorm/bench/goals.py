"""What these layers are meant to reach, beside what a benchmark measured."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from . import cold, fresh, relatives, small, summary
from .cases import FIRST, FORWARD, INFERENCE, LAST, PLAIN, RELU, RESNET50, TRAINING
from .jobs import CNN_WITH
from .networks import NONE
from .providers import IN_PLACE, OURS, TORCH
from .record import Benchmark
from .studies import CNN

_BOTH = f"{FORWARD}+{cold.BACKWARD}"


class Goal(NamedTuple):
    """One figure to reach.

    Attributes:
        what: in words, with its unit.
        wanted: the figure.
        measured: None if it was not measured.
        at_most: whether less is better.
    """

    what: str
    wanted: float
    measured: float | None
    at_most: bool = False

    @property
    def met(self) -> bool | None:
        """None if it was not measured."""
        if self.measured is None:
            return None
        return self.measured <= self.wanted if self.at_most else self.measured >= self.wanted


def goals(benchmark: Benchmark) -> list[Goal]:
    """All of them."""
    return [*_cold(benchmark), *_warm(benchmark), *_small(benchmark), *_networks(benchmark), *_rest(benchmark)]


HEADER = ("goal", "asked", "measured", "met")


def table(benchmark: Benchmark) -> list[tuple[str, ...]]:
    """One line a goal that was measured."""
    return [
        (
            goal.what,
            f"{'≤' if goal.at_most else '≥'} {goal.wanted:g}",
            _figure(goal.measured),
            "yes" if goal.met else "no",
        )
        for goal in goals(benchmark)
        if goal.measured is not None
    ]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.2f}"


def _cold(benchmark: Benchmark) -> Iterator[Goal]:
    sums, layers = cold.sums(benchmark.cold), cold.layers(benchmark.cold)
    for order, wanted in ((FIRST, 2.4), (LAST, 1.5)):
        found = sums[order][_BOTH] if order in sums else None
        yield Goal(f"ResNet-50's layers, caches cold, {order}: times as fast as torch", wanted, _over(found))
    worst = min((layer.ratio(FORWARD, cold.BACKWARD) for layer in layers), default=None)
    yield Goal("the slowest of these layers: times as fast as torch", 1.0, worst)
    shares = [layer.share(cold.copy_speed(benchmark.cold)) for layer in layers if layer.megabytes >= cold.BIG]
    yield Goal(f"share of the memory's speed, the worst from {cold.BIG:g} MB on", 0.55, min(shares, default=None))


def _over(found: cold.Sum | None) -> float | None:
    return None if found is None else found.torch / found.ours


def _warm(benchmark: Benchmark) -> Iterator[Goal]:
    eager = [each for each in summary.comparisons(benchmark) if each.peer in (TORCH, IN_PLACE)]
    worst = min((each.ratio for each in eager), default=None)
    yield Goal("caches warm, the worst case: times as fast as torch", summary.AS_FAST, worst)
    means = {key: summary.geometric_mean(values) for key, values in summary.grouped(benchmark, RESNET50).items()}
    for order, dtype, wanted in (
        *((FIRST, "float32", 3.0), (LAST, "float32", 1.8)),
        *((FIRST, "bfloat16", 2.5), (LAST, "bfloat16", 2.5)),
    ):
        what = f"BN + ReLU, {TRAINING}, {dtype}, {order}: geometric mean, times as fast as torch"
        yield Goal(what, wanted, means.get((order, dtype, RELU, TRAINING, TORCH)))
    worst = min((each.ratio for each in eager if each.mode == INFERENCE), default=None)
    yield Goal("inference, the worst case: times as fast as torch", 1.0, worst)


def _small(benchmark: Benchmark) -> Iterator[Goal]:
    for shape, epilogue, mode, wanted in (
        *(((60, 100), PLAIN, TRAINING, 1.1), ((60, 100), RELU, TRAINING, 1.3)),
        *(((60, 100), PLAIN, INFERENCE, 0.9), ((60, 100), RELU, INFERENCE, 0.9), ((128, 1024), RELU, TRAINING, 1.8)),
    ):
        measured = small.ratio(benchmark.small, shape, epilogue, mode)
        yield Goal(f"{shape}, {epilogue}, {mode}: times as fast as torch", wanted, measured)


def _networks(benchmark: Benchmark) -> Iterator[Goal]:
    for order in (FIRST, LAST):
        measured = None
        for row in benchmark.networks:
            if (row["depth"], row["order"], row["mode"]) == (50, order, "training"):
                none, ours, theirs = (row["timings"][name]["median"] for name in (NONE, OURS, TORCH))
                measured = (ours - none) / (theirs - none) if theirs > none else None
        what = f"what BN adds to a ResNet-50 training step, {order}: as a share of what torch's adds"
        yield Goal(what, 0.5, measured, at_most=True)
    steps = [row["timings"][OURS]["median"] for row in benchmark.studies if row["what"] == CNN]
    keras = [row["median"] for row in benchmark.peers if row["mode"] == CNN_WITH and row["framework"] == "tensorflow"]
    measured = keras[0] / steps[0] if keras and steps and keras[0] else None
    yield Goal("a step of the studies' CNN: times as fast as Keras on TensorFlow", 1.0, measured)


def _rest(benchmark: Benchmark) -> Iterator[Goal]:
    masked = [row["timings"][relatives.MASK]["median"] / row["timings"][OURS]["median"] for row in benchmark.relatives]
    yield Goal("a mask: times as long as without, at worst", 1.2, max(masked, default=None), at_most=True)
    seconds, megabytes = fresh.beyond(benchmark.fresh) or (None, None)
    yield Goal("a fresh process until its first step: seconds beyond torch's", 0.3, seconds, at_most=True)
    yield Goal("its resident memory: MB beyond torch's", 10.0, megabytes, at_most=True)
    installed = [row["seconds"] for row in benchmark.install]
    yield Goal("pip install beyond its dependencies: seconds", 60.0, max(installed, default=None), at_most=True)
    found = summary.errors(benchmark)
    above = float(sum(ours > 2 * theirs for _, _, ours, theirs in found)) if found else None
    yield Goal("cases whose largest error is above twice torch's", 0.0, above, at_most=True)
    big = f"{RESNET50[0]}, {LAST}, float32"
    times = [
        theirs / ours for where, _, ours, theirs in found if where.startswith(big) and not where.endswith(INFERENCE)
    ]
    yield Goal(f"errors at {big}: times below torch's", 100.0, min(times, default=None))
