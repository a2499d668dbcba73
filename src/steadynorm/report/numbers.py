"""The numbers behind each figure, and each table, as CSV in full precision."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from typing import Any

from ..records import Evidence, Figure
from .names import stems

HEADER = ["panel", "series", "x", "mean", "low", "high"]


def files(evidence: Evidence) -> dict[str, bytes]:
    """By name: data/CLAIM-N.csv for each figure, data/CLAIM-table-N.csv for each table."""
    found = {}
    for stem, section in zip(stems(evidence), evidence.sections, strict=True):
        for number, figure in enumerate(section.figures, 1):
            found[f"data/{stem}-{number}.csv"] = _csv([HEADER, *_rows(figure)])
        for number, table in enumerate(section.tables, 1):
            found[f"data/{stem}-table-{number}.csv"] = _csv([table.columns, *table.rows])
    return found


def _rows(figure: Figure) -> Iterator[list[Any]]:
    for panel in figure.panels:
        for line in panel.lines:
            low, high = line.low or line.y, line.high or line.y
            for values in zip(line.x, line.y, low, high, strict=True):
                yield [panel.title, line.name, *values]


def _csv(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()
