"""Timing in turns: every provider once a round, so that what the machine does meanwhile happens to all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

SECONDS = 0.15
"""Wanted of each provider."""


@dataclass(frozen=True)
class Timing:
    """Milliseconds of a call: median and quartiles."""

    median: float
    low: float
    high: float
    rounds: int


def in_turns(steps: dict[str, Callable[[], object]], seconds: float = SECONDS) -> dict[str, Timing]:
    """Times every step in each of as many rounds as fit into `seconds` a step, at least 5."""
    durations: dict[str, list[float]] = {name: [] for name in steps}
    slowest = 0.0
    for step in steps.values():
        step()
        step()
        slowest = max(slowest, _duration(step))
    for _ in range(max(5, min(200, int(seconds / max(slowest, 1e-9))))):
        for name, step in steps.items():
            durations[name].append(_duration(step))
    return {name: _summary(values) for name, values in durations.items()}


def copy_step(x: torch.Tensor) -> Callable[[], object]:
    """Copying the tensor: how fast its bytes can be read and written."""
    target = torch.empty_like(x)
    return lambda: target.copy_(x)


def _duration(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return (time.perf_counter() - start) * 1e3


def _summary(values: list[float]) -> Timing:
    low, median, high = statistics.quantiles(values, n=4)
    return Timing(median, low, high, len(values))
