"""Goals: what is met, what is missed, and what was not measured."""

from __future__ import annotations

import pytest

from steadynorm.bench.goals import HEADER, Goal, goals, table
from steadynorm.bench.record import Benchmark

from .rows import full


@pytest.mark.parametrize(
    ("goal", "met"),
    [
        (Goal("a", 2.0, 2.0), True),
        (Goal("a", 2.0, 1.9), False),
        (Goal("a", 2.0, 2.1, at_most=True), False),
        (Goal("a", 2.0, 0.0, at_most=True), True),
        (Goal("a", 2.0, None), None),
    ],
)
def test_met(goal: Goal, met: bool | None) -> None:
    assert goal.met is met


def test_what_was_not_measured_is_not_judged() -> None:
    assert table(Benchmark({})) == []
    assert {goal.measured for goal in goals(Benchmark({}))} == {None}


@pytest.mark.parametrize(
    ("what", "asked", "measured", "met"),
    [
        ("ResNet-50's layers, caches cold, channels first: times as fast as torch", "≥ 2.4", "2.50", "yes"),
        ("ResNet-50's layers, caches cold, channels last: times as fast as torch", "≥ 1.5", "1.50", "yes"),
        ("the slowest of these layers: times as fast as torch", "≥ 1", "1.50", "yes"),
        ("caches warm, the worst case: times as fast as torch", "≥ 0.95", "2.50", "yes"),
        ("(128, 1024), relu, forward+backward: times as fast as torch", "≥ 1.8", "1.50", "no"),
        (
            "what BN adds to a ResNet-50 training step, channels first: as a share of what torch's adds",
            "≤ 0.5",
            "0.60",
            "no",
        ),
        ("a mask: times as long as without, at worst", "≤ 1.2", "1.10", "yes"),
        ("a fresh process until its first step: seconds beyond torch's", "≤ 0.3", "0.20", "yes"),
        ("its resident memory: MB beyond torch's", "≤ 10", "8", "yes"),
        ("pip install beyond its dependencies: seconds", "≤ 60", "4.40", "yes"),
        ("cases whose largest error is above twice torch's", "≤ 0", "0", "yes"),
        ("errors at (32, 64, 112, 112), channels last, float32: times below torch's", "≥ 100", "0.50", "no"),
    ],
)
def test_of_a_record(what: str, asked: str, measured: str, met: str) -> None:
    lines = {line[0]: line for line in table(full())}
    assert lines[what] == (what, asked, measured, met)
    assert len(lines[what]) == len(HEADER)
