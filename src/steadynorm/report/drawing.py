"""What is drawn of a panel, by the picture and by the page alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..records import Figure, Line, Panel

Values = list[float | None]


@dataclass(frozen=True)
class Drawing:
    """A panel as it is drawn.

    Attributes:
        log_x, log_y: which axes are logarithmic.
        labels: the places of an x axis of words, in order; None for one of numbers.
        lines: with words as x everywhere or nowhere, a range at every point, and None where nothing can be drawn.
        left_out: how many points cannot be drawn, as they are 0 or less on a logarithmic axis.
    """

    log_x: bool
    log_y: bool
    labels: list[str] | None
    lines: list[Line]
    left_out: int


def drawing(panel: Panel) -> Drawing:
    """The panel, made ready."""
    labels = _labels(panel)
    log_x, log_y = "x" in panel.log and labels is None, "y" in panel.log
    lines = [_line(line, labels is not None, log_x, log_y) for line in panel.lines]
    known = sum(y is not None for line in panel.lines for y in line.y)
    return Drawing(log_x, log_y, labels, lines, known - sum(y is not None for line in lines for y in line.y))


def alone(line: Line) -> list[int]:
    """Which points have no neighbour: their range is no band but a stroke."""
    known = [
        False,
        *(low is not None and high is not None for low, high in zip(line.low, line.high, strict=True)),
        False,
    ]
    return [i for i in range(len(line.y)) if known[i + 1] and not known[i] and not known[i + 2]]


def columns(figure: Figure) -> int:
    """How many panels stand side by side."""
    return {1: 1, 2: 2, 4: 2}.get(len(figure.panels), 3)


def word(x: float | str) -> str:
    """A place on an axis of words."""
    return x if isinstance(x, str) else f"{x:g}"


def _labels(panel: Panel) -> list[str] | None:
    xs = [x for line in panel.lines for x in line.x]
    if not panel.bars and not any(isinstance(x, str) for x in xs):
        return None
    return list(dict.fromkeys(map(word, xs)))


def _line(line: Line, words: bool, log_x: bool, log_y: bool) -> Line:
    hidden = [log_x and not isinstance(x, str) and x <= 0 for x in line.x]

    def shown(values: Sequence[float | None]) -> Values:
        return [None if y is None or hide or (log_y and y <= 0) else y for y, hide in zip(values, hidden, strict=True)]

    low, high = (shown(values or line.y) for values in (line.low, line.high))
    return Line(line.name, [word(x) for x in line.x] if words else line.x, shown(line.y), low, high)
