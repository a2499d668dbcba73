"""Verdicts from paired seeds: a mean difference, its 95% interval, and nothing from one run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..records import CONTRADICTED, SUPPORTED, UNDECIDED, Effect, Run, Setting
from .results import Measure, Results

Factors = Mapping[str, Setting]
LEVEL = 0.95
DIGITS = 12
"""After the point: what is further behind is rounding."""


def difference(
    results: Results,
    measure: Measure,
    one: Factors,
    other: Factors,
    label: str,
    unit: str,
    *,
    scale: float = 1,
    decides: bool = True,
) -> Effect:
    """Mean of `one` minus `other` over seeds that have both, times `scale`; 0 is no effect."""
    pairs = _pairs(results, measure, one, other)
    return _effect(label, unit, [scale * (a - b) for a, b in pairs], 0.0, decides)


def contrast(values: Mapping[int, float], label: str, unit: str, *, scale: float = 1, decides: bool = True) -> Effect:
    """Mean of what was computed for each seed, such as a difference of differences, times `scale`; 0 is no effect."""
    return _effect(label, unit, [scale * values[seed] for seed in sorted(values)], 0.0, decides)


def ratio(
    results: Results, measure: Measure, one: Factors, other: Factors, label: str, *, decides: bool = True
) -> Effect:
    """Geometric mean of `one` over `other`, over seeds that have both above 0; 1 is no effect."""
    ratios = [a / b for a, b in _pairs(results, measure, one, other) if a > 0 and b > 0]
    return _geometric(label, ratios, decides)


def paired_ratio(
    one: Mapping[int, float], other: Mapping[int, float], label: str, *, neutral: float = 1.0, decides: bool = True
) -> Effect:
    """As `ratio`, of numbers by seed that several runs gave together; `neutral` is what a claim asks to be exceeded."""
    pairs = [(one[seed], other[seed]) for seed in sorted(one.keys() & other.keys())]
    found = _geometric(label, [a / b for a, b in pairs if a > 0 and b > 0], decides)
    return replace(found, neutral=neutral)


def speedup(results: Results, one: Factors, other: Factors, label: str, *, decides: bool = True) -> Effect:
    """How many times fewer steps `one` needs to the best validation accuracy that `other` reaches, pair by pair.

    The steps of `other` are those to its own best. Where `one` never gets there, or diverges before, it counts as if it
    got there with the last step of the longer training: at most 1, and more than it is; the label says how many do not.
    All this leans against `one`: the goal is the luckiest evaluation of `other`, and equals reach it later.
    """
    ratios, missed = [], 0
    firsts = {run.cell.seed: run for run in results.select(**one)}
    for run in results.select(**other):
        first, goal = firsts.get(run.cell.seed), best(run)
        if first is None or goal is None:
            continue
        own, needed = steps_to(run, goal), steps_to(first, goal)
        if needed is None:
            missed += 1
            needed = max(*run.series[VALIDATION].x, *first.series[VALIDATION].x)
        if own and needed:
            ratios.append(own / needed)
    return _geometric(f"{label} ({missed} of {len(ratios)} never get there)" if missed else label, ratios, decides)


def paired_difference(
    one: Mapping[int, float],
    other: Mapping[int, float],
    label: str,
    unit: str,
    *,
    scale: float = 1,
    decides: bool = True,
) -> Effect:
    """As `difference`, of numbers by seed that several runs gave together."""
    differences = {seed: one[seed] - other[seed] for seed in one.keys() & other.keys()}
    return contrast(differences, label, unit, scale=scale, decides=decides)


VALIDATION = "validation accuracy"


def best(run: Run) -> float | None:
    """The highest validation accuracy at any evaluation; None if there is none."""
    return max((y for y in run.series[VALIDATION].y if y is not None), default=None)


def steps_to(run: Run, accuracy: float) -> float | None:
    """The first step at which validation accuracy is at least this; None if it never is."""
    series = run.series[VALIDATION]
    return next((x for x, y in zip(series.x, series.y, strict=True) if y is not None and y >= accuracy), None)


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Student's 95% interval of the mean; None for fewer than two values."""
    if len(values) < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    middle = float(np.mean(values))
    return middle - half, middle + half


def no_finer(effect: Effect, step: float) -> Effect:
    """With an interval that is at least a step of the grid wide to either side, where both sides were found on a grid.

    Seeds that agree on a grid's points do not make them exact.

    Args:
        effect: of a ratio or a difference.
        step: from one point of the grid to the next: a factor above 1 of a ratio, else a distance.
    """
    if effect.estimate is None or effect.low is None or effect.high is None:
        return effect
    ratio = effect.unit == "×"
    below = effect.estimate / step if ratio else effect.estimate - step
    above = effect.estimate * step if ratio else effect.estimate + step
    return replace(effect, low=min(effect.low, below), high=max(effect.high, above))


def judged(effects: Sequence[Effect]) -> str:
    """Supported if every deciding effect's interval is above its neutral value, contradicted if every one is below.

    Undecided in between, and without an interval (fewer than two pairs of runs).
    """
    deciding = [effect for effect in effects if effect.decides]
    if not deciding or any(effect.low is None or effect.high is None for effect in deciding):
        return UNDECIDED
    if all(effect.low > effect.neutral for effect in deciding):  # type: ignore[operator]
        return SUPPORTED
    if all(effect.high < effect.neutral for effect in deciding):  # type: ignore[operator]
        return CONTRADICTED
    return UNDECIDED


def judged_best(effects: Sequence[Effect]) -> str:
    """Of one against each of several others: supported if it is above all of them, contradicted if one is above it."""
    alone = [judged([effect]) for effect in effects]
    return CONTRADICTED if CONTRADICTED in alone else SUPPORTED if set(alone) == {SUPPORTED} else UNDECIDED


def _pairs(results: Results, measure: Measure, one: Factors, other: Factors) -> list[tuple[float, float]]:
    first, second = results.by_seed(measure, **one), results.by_seed(measure, **other)
    return [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]


def _geometric(label: str, ratios: list[float], decides: bool) -> Effect:
    found = _effect(label, "×", [math.log(ratio) for ratio in ratios], 0.0, decides)
    estimate, low, high = (
        None if v is None else math.exp(min(v, 700)) for v in (found.estimate, found.low, found.high)
    )
    return Effect(label, "×", estimate, low, high, 1.0, found.pairs, decides)


def _effect(label: str, unit: str, values: list[float], neutral: float, decides: bool) -> Effect:
    between = interval(values)
    low, high = (round(end, DIGITS) for end in between) if between is not None else (None, None)
    estimate = round(float(np.mean(values)), DIGITS) if values else None
    return Effect(label, unit, estimate, low, high, neutral, len(values), decides)
