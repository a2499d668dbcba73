"""One self-contained page: a ledger of claims, and for each its finding, interactive figures and numbers."""

from __future__ import annotations

from collections import Counter
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from ..records import CONTRADICTED, SUPPORTED, UNDECIDED, Evidence, Figure, Panel, Section, words
from . import styles
from .drawing import Values, alone, columns, drawing
from .forest import WIDTH, forest
from .names import stems

VERDICTS = (SUPPORTED, CONTRADICTED, UNDECIDED)


def render(evidence: Evidence) -> bytes:
    """The page. Whatever text the evidence holds is shown as text, never run."""
    environment = Environment(
        loader=PackageLoader("steadynorm", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(words=words, styles=styles, forest=forest, forest_width=WIDTH)
    environment.globals.update(columns=columns, drawing=drawing)
    numbered = [styles.numbered(section) for section in evidence.sections]
    counts = Counter(section.verdict for section in evidence.sections)
    page = environment.get_template("page.html.j2").render(
        evidence=evidence,
        sections=list(zip(stems(evidence), evidence.sections, numbered, strict=True)),
        verdicts=[(verdict, counts[verdict]) for verdict in VERDICTS],
        figures=[figure for section in evidence.sections for figure in _figures(section)],
        plotly=get_plotlyjs(),
    )
    return page.encode()


def _figures(section: Section) -> list[dict[str, Any]]:
    """What the page's script draws, figure by figure."""
    both = zip(section.figures, styles.numbered(section), strict=True)
    return [_figure(figure, numbered) for figure, numbered in both]


def _figure(figure: Figure, numbered: dict[str, int]) -> dict[str, Any]:
    looks = {
        name: {"colour": look.colour, "symbol": look.symbol, "dash": look.plotly_dash}
        for name, look in ((name, styles.style(number)) for name, number in numbered.items())
    }
    return {"looks": looks, "panels": [_panel(panel) for panel in figure.panels]}


def _panel(panel: Panel) -> dict[str, Any]:
    drawn = drawing(panel)
    lines = [
        {
            "name": line.name,
            "x": [x if isinstance(x, str) or x != int(x) else int(x) for x in line.x],
            "y": _short(line.y),
            "low": _short(line.low),
            "high": _short(line.high),
            "alone": alone(line),
        }
        for line in drawn.lines
    ]
    return {
        "title": panel.title,
        "x": panel.x,
        "y": panel.y,
        "log": [drawn.log_x, drawn.log_y],
        "bars": panel.bars,
        "solo": styles.is_solo(panel),
        "labels": drawn.labels,
        "lines": lines,
    }


def _short(values: Values) -> Values:
    """Six significant digits: more than is seen, and half as long."""
    return [None if value is None else float(f"{value:.6g}") for value in values]
