"""Networks compared each at its own best learning rate: chosen by validation accuracy, judged by test accuracy."""

from __future__ import annotations

import math
from typing import Any

from ..records import DIVERGED, Figure, Run
from .claim import WITH, WITHOUT, Judgement
from .results import Results
from .showing import CAPTION, curves, in_words, means, sweep
from .verdict import VALIDATION, difference, judged, speedup

RATE = "lr"
NETWORKS = [WITHOUT, WITH]
BARE, NORMALIZED = {"network": WITHOUT}, {"network": WITH}
EQUAL = (
    "initial weights (redundant biases too; He et al. 2015 for ReLU), data and its order, optimizer, batch size, "
    "epochs, and the learning rates tried, of which each network is given its best"
)
RULE = (
    "of the rates tried, each network has the one with the best validation accuracy after the last step, on average "
    "over seeds; there"
)
TUNED_CAPTION = f"Each at its own best of the learning rates tried. {CAPTION}"


def last_validation(run: Run) -> float | None:
    """Validation accuracy after the last step; None if there was no evaluation."""
    return run.series[VALIDATION].y[-1] if run.series[VALIDATION].y else None


def validated(run: Run) -> tuple[float, float]:
    """What settings are chosen by: validation accuracy after the last step, and minus the loss, to part equal ones."""
    accuracy, loss = (run.series[name].y[-1:] or [None] for name in (VALIDATION, "validation loss"))
    if run.status == DIVERGED or accuracy[0] is None or loss[0] is None:
        return 0.0, -math.inf
    return accuracy[0], -loss[0]


def best_rates(results: Results, by: str, over: str = RATE) -> dict[Any, Any]:
    """For each level of the factor `by`, the rate that ends with the best mean validation accuracy.

    A rate of which seeds are missing or crashed that others have is not among them.
    """
    found: dict[Any, Any] = {}
    for level in results.levels(by):
        runs = {rate: results.select(**{by: level, over: rate}) for rate in results.levels(over)}
        most = max(map(len, runs.values()))
        merits = {
            rate: tuple(map(sum, zip(*map(validated, same), strict=True)))
            for rate, same in runs.items()
            if same and len(same) == most
        }
        if merits:
            found[level] = max(merits, key=merits.__getitem__)
    return found


def at_best_rates(results: Results, by: str, over: str = RATE) -> Results:
    """The runs at the best rate of their level of `by`."""
    rates = best_rates(results, by, over)
    return Results([run for run in results.runs if rates.get(run.cell.factors[by]) == run.cell.factors[over]])


def rates_in_words(results: Results, by: str, over: str = RATE) -> str:
    """Such as "best rates: without BN 0.001, with BN 0.01 (the highest tried)"."""
    tried = sorted(results.levels(over))
    if len(tried) == 1:
        return f"one rate was tried, {tried[0]:g}"
    ends = {tried[0]: " (the lowest tried)", tried[-1]: " (the highest tried)"} if len(tried) > 1 else {}
    found = best_rates(results, by, over).items()
    return "best rates: " + ", ".join(f"{level} {rate:g}{ends.get(rate, '')}" for level, rate in found)


def tuned_figures(results: Results, by: str) -> list[Figure]:
    """Curves of each level of `by` at its best rate, and test accuracy over all rates."""
    best = at_best_rates(results, by)
    accuracy = sweep(results, "test accuracy", RATE, by, "Test accuracy", "accuracy", x="learning rate", log="x")
    return [
        Figure("Training", TUNED_CAPTION, curves(best, by)),
        Figure(
            "Learning rates", "Test accuracy after the last step, at every rate tried; means over seeds.", [accuracy]
        ),
    ]


def judge_with_or_without(results: Results) -> Judgement:
    """Whether batch normalization makes a network better and faster, both at their best rates."""
    best = at_best_rates(results, "network")
    accuracy = difference(
        best, "test accuracy", NORMALIZED, BARE, "test accuracy, with BN − without", "points", scale=100
    )
    faster = speedup(best, NORMALIZED, BARE, "steps to the best validation accuracy without BN, without ÷ with")
    matched = [
        difference(
            results,
            "test accuracy",
            {**NORMALIZED, RATE: rate},
            {**BARE, RATE: rate},
            f"test accuracy at rate {rate:g}, with BN − without",
            "points",
            scale=100,
            decides=False,
        )
        for rate in results.levels(RATE)
    ]
    measures = {"test accuracy": "test accuracy", "validation accuracy, last step": last_validation}
    return Judgement(
        judged([accuracy, faster]),
        f"{in_words(accuracy)}; {in_words(faster)}; {rates_in_words(results, 'network')}.",
        [accuracy, faster, *matched],
        tuned_figures(results, "network"),
        [means(results, ["network", RATE], measures)],
    )
