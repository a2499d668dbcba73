"""The figures of merit of each variant, as the terminal's table and the page show them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import numpy as np

from ..records import Records, Run


class Cell(NamedTuple):
    """A mean over seeds, and in small letters the range it comes from or another remark; "" for none."""

    text: str
    remark: str = ""


@dataclass(frozen=True)
class Row:
    """One measure: its name, what it means, and a cell for each variant."""

    name: str
    meaning: str
    cells: list[Cell]


def finished(records: Records, variant: str) -> list[Run]:
    """The variant's runs, by seed."""
    return sorted((run for run in records.runs if run.variant == variant), key=lambda run: run.seed)


def rows(records: Records) -> list[Row]:
    """Every measure of every variant that has a run: means over seeds, with the range where there are several."""
    variants = [variant for variant in records.spec.variants if finished(records, variant)]

    def each(name: str, meaning: str, measure: Callable[[Run], float], form: Callable[[float], str]) -> Row:
        return Row(name, meaning, [_spread([measure(run) for run in finished(records, v)], form) for v in variants])

    return [
        each("test accuracy", "after the last epoch", lambda run: run.test_accuracy, _percent),
        each("best validation accuracy", "of any epoch", best_validation, _percent),
        Row(
            "to the other's best",
            "until validation accuracy is at least the best of the other network with the same seed",
            [_to_other(records, variant) for variant in variants],
        ),
        each(
            "seconds per epoch",
            "median, training only, as fast as this version of steadynorm's layers are",
            lambda run: float(np.median([epoch.seconds for epoch in run.epochs])),
            _short,
        ),
        each(
            "validation-loss roughness",
            "root mean square of its second difference over epochs, in nats; 0 for a straight line",
            roughness,
            _short,
        ),
    ]


def best_validation(run: Run) -> float:
    """The highest validation accuracy of any epoch."""
    return max(epoch.validation_accuracy for epoch in run.epochs)


def roughness(run: Run) -> float:
    """Root mean square of the second difference of the validation loss; nan below three epochs or if it diverged."""
    losses = [np.nan if epoch.validation_loss is None else epoch.validation_loss for epoch in run.epochs]
    bends = np.diff(losses, n=2)
    return float(np.sqrt(np.mean(bends**2))) if bends.size else np.nan


def epochs_to_other(run: Run, other: Run) -> int | None:
    """The first epoch, from 1, whose validation accuracy is at least the other's best; None if there is none."""
    goal = best_validation(other)
    reached = (n for n, epoch in enumerate(run.epochs, 1) if epoch.validation_accuracy >= goal)
    return next(reached, None)


def verdict(records: Records) -> str:
    """What the study shows, in one or two sentences that do not say more than the runs do."""
    pairs = _pairs(records)
    if not pairs:
        return "No seed has been trained with both networks yet."
    first, second = records.spec.variants
    one, two = (fmean([run.test_accuracy for run in runs]) for runs in zip(*pairs, strict=True))
    seeds = "one seed" if len(pairs) == 1 else f"{len(pairs)} seeds"
    if any(len(finished(records, variant)) > len(pairs) for variant in (first, second)):
        seeds += " that both have finished"
    text = f"Test accuracy is {_percent(two)} {second} and {_percent(one)} {first}, over {seeds}."
    epochs = [reached for pair in pairs if (reached := epochs_to_other(pair[1], pair[0])) is not None]
    goal = f"the best validation accuracy of the network {first}"
    if not epochs:
        return f"{text} The network {second} never reaches {goal}."
    often = "" if len(epochs) == len(pairs) else f" in {len(epochs)} of {len(pairs)} seeds,"
    after = f"{_short(fmean(epochs))} of {plural(records.spec.epochs, 'epoch')}"
    return f"{text} The network {second} reaches {goal}{often} after {after}."


def plural(count: int, noun: str) -> str:
    """The count and its noun: 1 seed, 3 seeds."""
    return f"{count:,} {noun}{'s' if count != 1 else ''}"


def _pairs(records: Records) -> list[tuple[Run, ...]]:
    """The runs of each seed that every variant has finished, in the order of the variants."""
    found = (tuple(records.find(variant, seed) for variant in records.spec.variants) for seed in records.spec.seeds)
    return [pair for pair in found if None not in pair]  # type: ignore[misc]


def _to_other(records: Records, variant: str) -> Cell:
    index = records.spec.variants.index(variant)
    pairs = _pairs(records)
    found = [(pair[index], epochs_to_other(pair[index], pair[1 - index])) for pair in pairs]
    reached = [(epochs, epochs * run.steps_per_epoch) for run, epochs in found if epochs is not None]
    if not pairs:
        return Cell("–")
    if not reached:
        return Cell("not reached")
    epochs, steps = (fmean(values) for values in zip(*reached, strict=True))
    some = "" if len(reached) == len(found) else f", {len(reached)} of {len(found)} seeds"
    return Cell(f"{_short(epochs)} epoch{'s' if epochs != 1 else ''}", f"{steps:,.0f} steps{some}")


def _spread(values: list[float], form: Callable[[float], str]) -> Cell:
    known = [value for value in values if np.isfinite(value)]
    if not known:
        return Cell("–")
    low, high = form(min(known)), form(max(known))
    remarks = [] if low == high else [f"{low} to {high}"]
    if len(known) < len(values):
        remarks.append(f"{len(known)} of {len(values)} seeds, the others are not finite")
    return Cell(form(fmean(known)), "; ".join(remarks))


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
