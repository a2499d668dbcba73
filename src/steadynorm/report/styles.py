"""How series are told apart: by colour (Okabe & Ito 2008, for any colour vision), by marker, and by dash."""

from __future__ import annotations

from dataclasses import dataclass

from ..records import Figure, Panel, Section

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#1b1f24", "#a89b00")
"""Their yellow is darkened, to be seen on white."""
DARK_COLOURS = ("#ff9a4d", "#5aa9f0", "#35c99c", "#e5a3c7", "#f5c04a", "#a5ddf7", "#e8ebee", "#f0e442")
"""The same on a dark page."""
SOLO, DARK_SOLO = "#5f7488", "#93a8bc"
"""Of a single row of bars, which is no series."""

_MARKERS = (
    ("o", "circle", "M-3.5 0a3.5 3.5 0 1 0 7 0a3.5 3.5 0 1 0 -7 0"),
    ("s", "square", "M-3.2 -3.2h6.4v6.4h-6.4z"),
    ("^", "triangle-up", "M0 -4l4 7h-8z"),
    ("D", "diamond", "M0 -4.2l4.2 4.2l-4.2 4.2l-4.2 -4.2z"),
    ("v", "triangle-down", "M0 4l4 -7h-8z"),
    ("P", "cross", "M-1.4 -4h2.8v2.6h2.6v2.8h-2.6v2.6h-2.8v-2.6h-2.6v-2.8h2.6z"),
    ("X", "x", "M-4 -2l2 -2l2 2l2 -2l2 2l-2 2l2 2l-2 2l-2 -2l-2 2l-2 -2l2 -2z"),
    ("p", "pentagon", "M0 -4l3.8 2.8l-1.5 4.4h-4.6l-1.5 -4.4z"),
)
_DASHES = (("-", "solid", ""), ("--", "dash", "6 3"), (":", "dot", "2 2"), ("-.", "dashdot", "6 2 2 2"))


@dataclass(frozen=True)
class Style:
    """Of one series, in the words of matplotlib, of plotly and of SVG."""

    colour: int
    marker: str
    dash: str
    symbol: str
    plotly_dash: str
    path: str
    dasharray: str


def style(index: int) -> Style:
    """Of the series of this number; the first 16 all differ, the first 8 in colour and marker."""
    marker, symbol, path = _MARKERS[index % len(_MARKERS)]
    dash, plotly_dash, dasharray = _DASHES[index // 4 % len(_DASHES)]
    return Style(index % len(COLOURS), marker, dash, symbol, plotly_dash, path, dasharray)


def series(figure: Figure) -> list[str]:
    """The names of a figure's series, in order."""
    return list(dict.fromkeys(line.name for panel in figure.panels if not is_solo(panel) for line in panel.lines))


def is_solo(panel: Panel) -> bool:
    """Whether it is a single row of bars, which needs no legend."""
    return panel.bars and len(panel.lines) == 1


def numbered(section: Section) -> list[dict[str, int]]:
    """A number for each series of each figure; the same throughout the section, if its series are 8 or fewer."""
    names = list(dict.fromkeys(name for figure in section.figures for name in series(figure)))
    if len(names) <= len(COLOURS):
        return [{name: names.index(name) for name in series(figure)} for figure in section.figures]
    return [{name: number for number, name in enumerate(series(figure))} for figure in section.figures]
