"""Figures as pictures."""

from __future__ import annotations

import math
import warnings
from io import BytesIO
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ..records import Evidence, Figure, Line, Panel
from .drawing import Drawing, Values, alone, columns, drawing
from .names import stems
from .styles import COLOURS, SOLO, is_solo, numbered, style

SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "steadynorm",
    "axes.titlesize": 10,
    "legend.handlelength": 3,
    "font.size": 9,
    "figure.constrained_layout.wspace": 0.06,
}
MARKERS = 12
"""So many of a curve's points have a marker."""


def files(evidence: Evidence) -> dict[str, bytes]:
    """By name: figures/CLAIM-N.png and .svg for each figure; equal evidence gives equal bytes."""
    found = {}
    for stem, section in zip(stems(evidence), evidence.sections, strict=True):
        for number, (figure, styles) in enumerate(zip(section.figures, numbered(section), strict=True), 1):
            png, svg = draw(figure, styles)
            found[f"figures/{stem}-{number}.png"] = png
            found[f"figures/{stem}-{number}.svg"] = svg
    return found


def draw(figure: Figure, styles: dict[str, int]) -> tuple[bytes, bytes]:
    """The figure as PNG and as SVG; `styles` numbers its series."""
    with rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # letters no installed font has are boxes
        picture = _picture(figure, styles)
        png = _saved(picture, "png", {"dpi": 150})
        picture.set_layout_engine("none")  # it is laid out now
        return png, _saved(picture, "svg", {"metadata": {"Date": None}})


def _saved(picture: Picture, form: str, options: dict[str, Any]) -> bytes:
    content = BytesIO()
    picture.savefig(content, format=form, **options)
    return content.getvalue()


def _picture(figure: Figure, styles: dict[str, int]) -> Picture:
    across = columns(figure)
    down = math.ceil(len(figure.panels) / across)
    picture = Picture(figsize=(max(6.0, 4.4 * across), 3.2 * down + 0.7), layout="constrained")
    picture.suptitle(_text(figure.title), x=0.01, ha="left", fontweight="bold")
    for place, panel in enumerate(figure.panels, 1):
        _panel(picture.add_subplot(down, across, place), panel, styles)
    if len(styles) > 1:
        handles = [Line2D([], [], **_look(number)) for number in styles.values()]
        names = [_text(name) for name in styles]
        picture.legend(handles, names, loc="outside lower center", ncols=min(len(names), 2 * across), frameon=False)
    return picture


def _panel(axes: Axes, panel: Panel, styles: dict[str, int]) -> None:
    drawn = drawing(panel)
    axes.set_title(_text(panel.title), loc="left")
    axes.set_xlabel(_text(panel.x))
    axes.set_ylabel(_text(panel.y))
    axes.grid(alpha=0.25, axis="y" if panel.bars else "both")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _scales(axes, drawn)
    for place, line in enumerate(drawn.lines):
        if panel.bars:
            _bars(axes, line, drawn, place, styles, solo=is_solo(panel))
        else:
            _curve(axes, line, drawn, _look(styles[line.name]))


def _scales(axes: Axes, drawn: Drawing) -> None:
    if drawn.log_x:
        axes.set_xscale("log")
    if drawn.log_y:
        axes.set_yscale("log")
    xs = [x for line in drawn.lines for x in line.x if not isinstance(x, str)]
    if drawn.labels is not None:
        crowded = sum(map(len, drawn.labels)) > 36
        turned = {"rotation": 30, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        axes.set_xticks(range(len(drawn.labels)), [_text(label) for label in drawn.labels], **turned)
    elif not drawn.log_x and all(x == int(x) for x in xs):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _curve(axes: Axes, line: Line, drawn: Drawing, look: dict[str, Any]) -> None:
    xs = _places(line, drawn)
    axes.fill_between(xs, _numbers(line.low), _numbers(line.high), color=look["color"], alpha=0.18, linewidth=0)
    for place in alone(line):
        axes.plot([xs[place]] * 2, _numbers([line.low[place], line.high[place]]), color=look["color"], linewidth=1.2)
    axes.plot(xs, _numbers(line.y), markevery=max(1, len(xs) // MARKERS), **look)


def _bars(axes: Axes, line: Line, drawn: Drawing, place: int, styles: dict[str, int], *, solo: bool) -> None:
    width = 0.8 / len(drawn.lines)
    xs = [x + (place - (len(drawn.lines) - 1) / 2) * width for x in _places(line, drawn)]
    names = line.x if solo else [line.name] * len(xs)
    colours = [COLOURS[style(styles[n]).colour] if n in styles else SOLO for n in map(str, names)]
    axes.bar(xs, _numbers(line.y), 0.92 * width, color=colours)
    axes.vlines(xs, _numbers(line.low), _numbers(line.high), color="#1b1f24", linewidth=1.2)


def _places(line: Line, drawn: Drawing) -> list[float]:
    if drawn.labels is None:
        return [float(x) for x in line.x]
    return [float(drawn.labels.index(str(x))) for x in line.x]


def _look(number: int) -> dict[str, Any]:
    found = style(number)
    colour = COLOURS[found.colour]
    return {"color": colour, "marker": found.marker, "linestyle": found.dash, "linewidth": 1.6, "markersize": 4}


def _numbers(values: Values) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _text(text: str) -> str:
    """As matplotlib shows it letter by letter: no formula between $, and no name of a leading _, which it hides."""
    return text.replace("$", r"\$") if not text.startswith("_") else f" {text}".replace("$", r"\$")
