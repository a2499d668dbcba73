"""Verdicts and effects against values worked out by hand, and against a simulation of what 95% means."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steadynorm.records import CONTRADICTED, CRASHED, DIVERGED, SUPPORTED, UNDECIDED, Cell, Effect, Line, Run, Series
from steadynorm.study.results import Results
from steadynorm.study.showing import in_words, means
from steadynorm.study.verdict import difference, interval, judged, no_finer, ratio, speedup, steps_to

A, B = {"network": "a"}, {"network": "b"}


def a_run(
    network: str, seed: int, accuracy: float | None, curve: list[float | None] | None = None, status: str = "finished"
) -> Run:
    series = (
        {} if curve is None else {"validation accuracy": Series([10.0 * (i + 1) for i in range(len(curve))], curve)}
    )
    values = {} if status == CRASHED else {"accuracy": accuracy}
    return Run(Cell("c", {"network": network}, seed, {}), status, "", values, series)


def test_a_difference_by_hand() -> None:
    """Differences 0.1, 0.2, 0.3: mean 0.2, standard deviation 0.1, t(0.975, 2) = 4.3027, half-width 0.2484."""
    runs = [a_run("a", s, v) for s, v in enumerate([0.5, 0.7, 0.9])] + [
        a_run("b", s, v) for s, v in enumerate([0.4, 0.5, 0.6])
    ]
    effect = difference(Results(runs), "accuracy", A, B, "l", "points", scale=100)
    assert (effect.label, effect.unit, effect.neutral, effect.pairs) == ("l", "points", 0, 3)
    assert (effect.estimate, effect.low, effect.high) == pytest.approx((20, 20 - 24.8414, 20 + 24.8414), abs=1e-3)
    assert judged([effect]) == UNDECIDED
    assert in_words(effect) == "l: +20 points (95% interval −4.84 to +44.8, 3 pairs)"


def test_a_ratio_by_hand() -> None:
    """Ratios 2 and 8: geometric mean 4, logs differ from it by ±ln 2, half-width 12.7062 · ln 2."""
    runs = [a_run("a", 0, 2.0), a_run("b", 0, 1.0), a_run("a", 1, 8.0), a_run("b", 1, 1.0)]
    effect = ratio(Results(runs), "accuracy", A, B, "l")
    wide = math.exp(12.7062 * math.log(2))
    assert (effect.estimate, effect.low, effect.high) == pytest.approx((4, 4 / wide, 4 * wide), rel=1e-4)
    assert (effect.unit, effect.neutral) == ("×", 1)


def test_only_pairs_count() -> None:
    runs = [
        a_run("a", 0, 0.9),
        a_run("b", 0, 0.5),
        a_run("a", 1, 0.9),  # no partner
        a_run("a", 2, None),  # not finite
        a_run("b", 2, 0.5),
        a_run("a", 3, 0.9),
        a_run("b", 3, 0.1, status=CRASHED),
    ]
    effect = difference(Results(runs), "accuracy", A, B, "l", "")
    assert (effect.estimate, effect.low, effect.pairs) == (pytest.approx(0.4), None, 1)
    assert judged([effect]) == UNDECIDED
    assert in_words(effect) == "l: +0.4 (one pair, no interval)"
    assert in_words(difference(Results([]), "accuracy", A, B, "l", "")) == "l: not measured"


def test_speedup_by_hand() -> None:
    """Seed 0: b is best (0.8) at 40, where a is at 20: 2. Seed 1: b is best at 30, where a is not in 40: 0.75."""
    runs = [
        a_run("a", 0, 0, [0.7, 0.8, 0.85, 0.9]),
        a_run("b", 0, 0, [0.5, 0.6, 0.7, 0.8]),
        a_run("a", 1, 0, [0.1, 0.2, 0.3, None]),
        a_run("b", 1, 0, [0.5, 0.6, 0.7, 0.7]),
    ]
    effect = speedup(Results(runs), A, B, "l")
    assert effect.estimate == pytest.approx(math.sqrt(2 * 0.75))
    assert effect.pairs == 2
    assert effect.label == "l (1 of 2 never get there)"
    assert steps_to(runs[2], 0.5) is None


def test_a_run_that_diverges_is_not_fast() -> None:
    """It stops at step 10; the other needs 40 of its 50 steps. As if it got there with step 50."""
    runs = [a_run("a", 0, 0, [0.1], DIVERGED), a_run("b", 0, 0, [0.5, 0.6, 0.7, 0.8, 0.8])]
    assert speedup(Results(runs), A, B, "l").estimate == pytest.approx(40 / 50)


def test_an_effect_is_no_finer_than_its_grid() -> None:
    wide = no_finer(Effect("l", "×", 8.0, 8.0, 8.0, 1.0, 3), 2.0)
    assert (wide.low, wide.high) == (4.0, 16.0)
    assert no_finer(Effect("l", "×", 8.0, 2.0, 32.0, 1.0, 3), 2.0).low == 2.0
    apart = no_finer(Effect("l", "decades", 4.5, 4.4, 5.5, 0.0, 3), 1.0)
    assert (apart.low, apart.high) == (3.5, 5.5)
    assert no_finer(Effect("l", "×", 8.0, None, None, 1.0, 1), 2.0).low is None


def test_rounding_is_no_effect() -> None:
    runs = [a_run(n, s, v) for s in range(3) for n, v in (("a", 0.1 + 0.2), ("b", 0.3))]
    found = difference(Results(runs), "accuracy", A, B, "l", "points", scale=100)
    assert (found.estimate, found.low, found.high) == (0, 0, 0)


def effect(low: float | None, high: float | None, neutral: float = 0, decides: bool = True) -> Effect:
    return Effect("l", "", 0.5, low, high, neutral, 3, decides)


@pytest.mark.parametrize(
    ("effects", "verdict"),
    [
        ([effect(0.1, 0.9)], SUPPORTED),
        ([effect(-0.9, -0.1)], CONTRADICTED),
        ([effect(-0.1, 0.9)], UNDECIDED),
        ([effect(0.0, 0.9)], UNDECIDED),
        ([effect(0.1, 0.9, neutral=1)], CONTRADICTED),
        ([effect(0.1, 0.9), effect(-0.1, 0.9)], UNDECIDED),
        ([effect(0.1, 0.9), effect(-0.9, -0.1)], UNDECIDED),
        ([effect(0.1, 0.9), effect(-0.9, -0.1, decides=False)], SUPPORTED),
        ([effect(None, None)], UNDECIDED),
        ([effect(0.1, 0.9, decides=False)], UNDECIDED),
        ([], UNDECIDED),
    ],
)
def test_the_rule(effects: list[Effect], verdict: str) -> None:
    assert judged(effects) == verdict


def test_an_interval_holds_the_mean_in_95_of_100_cases() -> None:
    generator = np.random.default_rng(0)
    found = [interval(list(values)) for values in generator.normal(1.5, 2, (2000, 4))]
    share = np.mean([low < 1.5 < high for low, high in filter(None, found)])
    assert 0.94 < share < 0.96
    assert interval([1.0]) is None


def test_curves_and_sweeps_by_hand() -> None:
    runs = [a_run("a", 0, 1.0, [0.2, None]), a_run("a", 1, 3.0, [0.4, None, 0.6]), a_run("b", 0, None)]
    results = Results(runs)
    curve = results.curve("validation accuracy", "A", **A)
    assert (curve.x, curve.low, curve.high) == ([10, 20, 30], [0.2, None, 0.6], [0.4, None, 0.6])
    assert curve.y == [pytest.approx(0.3), None, 0.6]
    assert results.sweep("accuracy", "network", "n") == Line("n", ["a", "b"], [2, None], [1, None], [3, None])
    assert results.seeds == [0, 1]
    assert means(results, ["network"], {"accuracy": "accuracy"}).rows == [["a", 2.0], ["b", None]]
