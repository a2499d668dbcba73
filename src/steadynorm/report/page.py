"""One self-contained page: interactive curves, the table, the settings, and the data behind each figure."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs

from ..records import Records
from .curves import PANELS, Curve, curves
from .summary import finished, rows, verdict


def render(records: Records) -> str:
    """The page. Whatever text the records hold is shown as text, never run."""
    environment = Environment(
        loader=PackageLoader("steadynorm", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    variants = [variant for variant in records.spec.variants if finished(records, variant)]
    return environment.get_template("page.html.j2").render(
        records=records,
        spec=records.spec,
        variants=[(variant, len(finished(records, variant))) for variant in variants],
        verdict=verdict(records),
        rows=rows(records),
        missing=len(records.wanted) - len(records.runs),
        panels=[(panel, _figure(found), found) for panel in PANELS for found in [curves(records, panel)]],
        plotly=get_plotlyjs(),
    )


def _figure(found: list[Curve]) -> list[dict[str, Any]]:
    """plotly traces: for each variant the range, and over it the mean. Colours are the page's, by `meta`."""
    return [trace for index, curve in enumerate(found) for trace in _traces(curve, index)]


def _traces(curve: Curve, index: int) -> list[dict[str, Any]]:
    epochs = list(range(1, len(curve.mean) + 1))
    band = {
        "x": [*epochs, *reversed(epochs)],
        "y": [*_numbers(curve.high), *reversed(_numbers(curve.low))],
        "fill": "toself",
        "mode": "none",
        "hoverinfo": "skip",
        "meta": {"series": index, "band": True},
    }
    line = {
        "x": epochs,
        "y": _numbers(curve.mean),
        "customdata": list(zip(_numbers(curve.low), _numbers(curve.high), strict=True)),
        "name": html.escape(curve.variant),
        "mode": "lines+markers",
        "hovertemplate": "%{y:.4f} (%{customdata[0]:.4f} to %{customdata[1]:.4f})",
        "meta": {"series": index, "band": False},
    }
    return [band, line]


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
