"""Timing in turns: every provider once a round, so that what the machine does meanwhile happens to all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

SECONDS = 0.15
"""Wanted of each provider."""
ROUNDS = 7
"""At least."""
UNSTEADY = 0.5
"""Of its median: quartiles that are further apart than this were disturbed by something else on the machine."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a call: the best round, the quartiles and the median, of so many rounds."""

    best: float
    low: float
    median: float
    high: float
    rounds: int

    @property
    def spread(self) -> float:
        """Between the quartiles, as a share of the median."""
        return (self.high - self.low) / self.median


def in_turns(steps: dict[str, Callable[[], object]], seconds: float = SECONDS) -> dict[str, Timing]:
    """Times every step in each of as many rounds as fit into `seconds` a step, at least `ROUNDS`."""
    durations: dict[str, list[float]] = {name: [] for name in steps}
    slowest = 0.0
    for step in steps.values():
        step()
        step()
        slowest = max(slowest, duration(step) / 1e3)
    for _ in range(max(ROUNDS, min(200, int(seconds / max(slowest, 1e-9))))):
        for name, step in steps.items():
            durations[name].append(duration(step))
    return {name: summed_up(values) for name, values in durations.items()}


def steadier(measure: Callable[[], dict[str, Timing]]) -> dict[str, Timing]:
    """Measures once more where a timing is unsteady, and returns the measurement with the smaller largest spread.

    It is chosen by spread alone, for all providers together, so that the choice favours none.
    """
    first = measure()
    if _largest_spread(first) <= UNSTEADY:
        return first
    return min(first, measure(), key=_largest_spread)


def in_batches(
    steps: dict[str, Callable[[], object]], milliseconds: float = 2.0, rounds: int = 31
) -> dict[str, Timing]:
    """For calls of microseconds, which a clock read around each would disturb: batches of calls, in turns.

    Args:
        steps: what to call.
        milliseconds: how long a batch is about.
        rounds: how many batches of each.

    Returns:
        Milliseconds of one call: a batch's time over its calls.
    """
    calls = {}
    for name, step in steps.items():
        calls[name] = max(1, int(milliseconds / statistics.median(duration(step) for _ in range(20))))
    durations: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            durations[name].append(duration(_repeated(step, calls[name])) / calls[name])
    return {name: summed_up(values) for name, values in durations.items()}


def copy_step(x: torch.Tensor) -> Callable[[], object]:
    """Copying the tensor: how fast its bytes can be read and written."""
    target = torch.empty_like(x)
    return lambda: target.copy_(x)


def duration(step: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e3


def summed_up(values: list[float]) -> Timing:
    """The best, quartiles and median of milliseconds, at least one."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return Timing(min(values), low, median, high, len(values))


def plain(timings: dict[str, Timing]) -> dict[str, dict[str, float]]:
    """Timings as a record keeps them."""
    return {name: asdict(timing) for name, timing in timings.items()}


def _largest_spread(timings: dict[str, Timing]) -> float:
    return max(timing.spread for timing in timings.values())


def _repeated(step: Callable[[], object], times: int) -> Callable[[], object]:
    def repeated() -> None:
        for _ in range(times):
            step()

    return repeated
