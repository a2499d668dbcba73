"""What claims have in common in how they show their runs: curves, sweeps, tables, and numbers in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..records import Effect, Figure, Line, Panel, Run, Table
from ..records.words import estimate, interval
from .results import Measure, Results

CURVES = {
    "train accuracy": ("Training accuracy", "accuracy"),
    "validation accuracy": ("Validation accuracy", "accuracy"),
    "train loss": ("Training loss", "nats"),
    "validation loss": ("Validation loss", "nats"),
}
SECONDS: Mapping[str, Measure] = {"processor seconds of training": lambda run: run.seconds["training"]}
"""For tables."""


def milliseconds(run: Run) -> float:
    """Processor time of a training step; see `training.fit`."""
    return 1000 * run.seconds["training"] / run.series["validation loss"].x[-1]


CAPTION = (
    "Lines are means over seeds, bands the range from the lowest to the highest; what is not finite is left out. "
    "Training figures are averages since the last evaluation, in train mode while the weights moved; validation "
    "figures are taken in eval mode."
)


def curves(
    results: Results, by: str, series: Mapping[str, tuple[str, str]] = CURVES, *, x: str = "step", log: str = ""
) -> list[Panel]:
    """A panel a series (name → title, unit), with a curve for each level of the factor `by`."""
    return [
        Panel(title, x, unit, [results.curve(name, str(level), **{by: level}) for level in results.levels(by)], log)
        for name, (title, unit) in series.items()
    ]


def training_figure(results: Results, by: str, title: str = "Training") -> Figure:
    """Accuracy and loss over steps, for each level of the factor `by`."""
    return Figure(title, CAPTION, curves(results, by))


def sweep(
    results: Results, measure: Measure, over: str, by: str, title: str, y: str, *, x: str = "", log: str = ""
) -> Panel:
    """A measure at each level of the factor `over`, one curve for each level of `by`."""
    lines = [results.sweep(measure, over, str(level), **{by: level}) for level in results.levels(by)]
    return Panel(title, x or over, y, lines, log)


def bars(results: Results, measure: Measure, by: str, title: str, y: str) -> Panel:
    """A measure at each level of the factor `by`, as bars."""
    found = results.sweep(measure, by, title)
    return Panel(title, by, y, [Line(title, [str(x) for x in found.x], found.y, found.low, found.high)], bars=True)


def means(
    results: Results, by: Sequence[str], measures: Mapping[str, Measure], title: str = "Means over seeds"
) -> Table:
    """A row for each combination of the factors `by`, a column for each measure."""
    rows: list[list[float | str | None]] = []
    seen: dict[tuple, None] = dict.fromkeys(tuple(run.cell.factors[factor] for factor in by) for run in results.runs)
    for levels in seen:
        chosen = dict(zip(by, levels, strict=True))
        found = [results.mean(measure, **chosen) for measure in measures.values()]
        rows.append([*("none" if v is None else str(v) for v in levels), *(v if v == v else None for v in found)])
    return Table(title, [*by, *measures], rows)


def in_words(effect: Effect) -> str:
    """Such as "test accuracy, with BN − without: +3.2 points (95% interval +1.1 to +5.3, 3 pairs)"."""
    if effect.estimate is None:
        return f"{effect.label}: not measured"
    between = (
        f"95% interval {interval(effect)}, {effect.pairs} pairs" if effect.low is not None else "one pair, no interval"
    )
    return f"{effect.label}: {estimate(effect)} ({between})"
