"""Timings: their arithmetic, and what is measured again."""

from __future__ import annotations

import pytest

from steadynorm.bench import timing
from steadynorm.bench.timing import Timing, in_batches, in_turns, steadier, summed_up

CALM, WILD = Timing(1.0, 1.0, 1.1, 1.2, 7), Timing(1.0, 1.0, 2.0, 4.0, 7)


def test_summed_up() -> None:
    assert summed_up([4.0, 1.0, 3.0, 2.0, 5.0]) == Timing(1.0, 2.0, 3.0, 4.0, 5)
    assert summed_up([2.0]) == Timing(2.0, 2.0, 2.0, 2.0, 1)


def test_steps_take_turns() -> None:
    called: list[str] = []
    found = in_turns({name: lambda name=name: called.append(name) for name in "ab"}, seconds=0)
    assert called == ["a"] * 3 + ["b"] * 3 + ["a", "b"] * timing.ROUNDS
    assert {name: each.rounds for name, each in found.items()} == {"a": timing.ROUNDS, "b": timing.ROUNDS}


def test_a_batch_s_time_is_shared_by_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock on which every call takes 10 microseconds: batches of 200 calls last 2 ms."""
    now, calls = [0.0], [0]

    def step() -> None:
        now[0] += 1e-5
        calls[0] += 1

    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    found = in_batches({"a": step}, milliseconds=2.0, rounds=3)["a"]
    assert found.median == pytest.approx(0.01)
    assert found.rounds == 3
    assert calls[0] == pytest.approx(20 + 3 * 200, abs=3)


@pytest.mark.parametrize(
    ("measured", "expected"),
    [([CALM], CALM), ([WILD, CALM], CALM), ([Timing(9.0, 9.0, 9.0, 15.0, 7), WILD], Timing(9.0, 9.0, 9.0, 15.0, 7))],
    ids=["calm at once", "calm again", "disturbed twice"],
)
def test_what_was_disturbed_is_measured_again(measured: list[Timing], expected: Timing) -> None:
    """Once, and the calmer counts, whoever it favours."""
    left = list(measured)
    assert steadier(lambda: {"a": left.pop(0)}) == {"a": expected}
    assert left == []
