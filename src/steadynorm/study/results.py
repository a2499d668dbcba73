"""The runs of one claim, selected, paired by seed and drawn as curves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..records import CRASHED, Line, Run, Series, Setting, finite

Measure = str | Callable[[Run], float | None]


@dataclass(frozen=True)
class Results:
    """All runs that a claim has so far; those that crashed have no values and are left out of everything."""

    runs: list[Run]

    def select(self, **factors: Setting) -> list[Run]:
        """The runs whose factors are these."""
        wanted = factors.items()
        return [run for run in self.runs if run.status != CRASHED and wanted <= run.cell.factors.items()]

    def levels(self, factor: str) -> list[Any]:
        """The values a factor has, in order of appearance."""
        return list(dict.fromkeys(run.cell.factors[factor] for run in self.runs))

    @property
    def seeds(self) -> list[int]:
        return sorted({run.cell.seed for run in self.runs})

    def complete(self) -> Results:
        """The runs of those seeds for which every combination of factors has a run that did not crash."""
        wanted = {tuple(run.cell.factors.items()) for run in self.runs}
        have: dict[int, set[tuple[tuple[str, Setting], ...]]] = {}
        for run in self.select():
            have.setdefault(run.cell.seed, set()).add(tuple(run.cell.factors.items()))
        return Results([run for run in self.runs if have.get(run.cell.seed) == wanted])

    def values(self, measure: Measure, **factors: Setting) -> NDArray[np.float64]:
        """A measure of each selected run; nan where it is not finite."""
        return np.array([_number(measure, run) for run in self.select(**factors)], dtype=np.float64)

    def mean(self, measure: Measure, **factors: Setting) -> float:
        """Over the runs where it is finite; nan if none."""
        found = self.values(measure, **factors)
        found = found[np.isfinite(found)]
        return float(found.mean()) if found.size else float("nan")

    def by_seed(self, measure: Measure, **factors: Setting) -> dict[int, float]:
        """The mean of a measure over each seed's selected runs; seeds where one is not finite are left out."""
        found: dict[int, list[float]] = {}
        for run in self.select(**factors):
            found.setdefault(run.cell.seed, []).append(_number(measure, run))
        means = {seed: float(np.mean(numbers)) for seed, numbers in found.items()}
        return {seed: mean for seed, mean in means.items() if np.isfinite(mean)}

    def curve(self, series: str, name: str, **factors: Setting) -> Line:
        """Mean and range over the selected runs of a series, where at least one has a value."""
        found = [run.series[series] for run in self.select(**factors) if series in run.series]
        return line(name, found)

    def sweep(self, measure: Measure, over: str, name: str, **factors: Setting) -> Line:
        """Mean and range over seeds of a measure at each level of a factor."""
        levels = [level for level in self.levels(over) if self.select(**{over: level}, **factors)]
        columns = [self.values(measure, **{over: level}, **factors) for level in levels]
        return _spread(name, levels, columns)


def line(name: str, found: Iterable[Series]) -> Line:
    """Mean and range of several series, at every x that one of them has."""
    at: dict[float, list[float]] = {}
    for series in found:
        for x, y in zip(series.x, series.y, strict=True):
            at.setdefault(x, []).append(np.nan if y is None else y)
    xs = sorted(at)
    return _spread(name, xs, [np.array(at[x]) for x in xs])


def _spread(name: str, xs: list[Any], columns: list[NDArray[np.float64]]) -> Line:
    known = [column[np.isfinite(column)] for column in columns]

    def each(reduce: Callable[[NDArray[np.float64]], Any]) -> list[float | None]:
        return [finite(float(reduce(column))) if column.size else None for column in known]

    places: list[float | str] = [x if isinstance(x, (int, float)) and not isinstance(x, bool) else str(x) for x in xs]
    return Line(name, places, each(np.mean), each(np.min), each(np.max))


def _number(measure: Measure, run: Run) -> float:
    value = run.values.get(measure) if isinstance(measure, str) else measure(run)
    return np.nan if value is None else float(value)
