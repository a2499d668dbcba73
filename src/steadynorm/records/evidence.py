"""What runs show: verdicts with their effects, and the figures and tables behind them, as a report draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

ALL = "What batch normalization does"
"""The title of several claims."""
SUPPORTED, CONTRADICTED, UNDECIDED = "supported", "contradicted", "undecided"


@dataclass(frozen=True)
class Effect:
    """A difference (or ratio) between paired runs.

    Attributes:
        label: what is compared, such as "test accuracy, with BN − without".
        unit: such as "points", "×" or "nats".
        estimate: the mean over pairs; None where there is no pair.
        low, high: its 95% interval; None with fewer than two pairs.
        neutral: the value that means no effect: 0 for a difference, 1 for a ratio.
        pairs: how many.
        decides: whether the verdict rests on it.
    """

    label: str
    unit: str
    estimate: float | None
    low: float | None
    high: float | None
    neutral: float
    pairs: int
    decides: bool = True


@dataclass(frozen=True)
class Line:
    """A curve or a row of bars: mean over seeds and the range they span; None where nothing is finite."""

    name: str
    x: list[float | str]
    y: list[float | None]
    low: list[float | None] = field(default_factory=list)
    high: list[float | None] = field(default_factory=list)


@dataclass(frozen=True)
class Panel:
    """One pair of axes.

    Attributes:
        title: what is drawn.
        x, y: what the axes show, with units.
        lines: the curves.
        log: the axes that are logarithmic: "", "x", "y" or "xy".
        bars: draw bars over the x values instead of curves.
    """

    title: str
    x: str
    y: str
    lines: list[Line]
    log: str = ""
    bars: bool = False


@dataclass(frozen=True)
class Figure:
    """One or more panels that share their series; the caption says how to read them."""

    title: str
    caption: str
    panels: list[Panel]


@dataclass(frozen=True)
class Table:
    """Rows of numbers and text, None for none."""

    title: str
    columns: list[str]
    rows: list[list[float | str | None]]


@dataclass(frozen=True)
class Section:
    """One claim and what was found.

    Attributes:
        claim: its name.
        question, source, factors, equal, measure, rule, would_change: as the claim states them.
        data: the title of the data it was measured on.
        settings: what was held equal, in words.
        verdict: "supported", "contradicted" or "undecided".
        finding: what was found, in one or two sentences that do not say more than the runs do.
        effects: the differences behind the verdict.
        figures, tables: what is shown.
        runs: how many runs finished, diverged, crashed, and are missing.
        seeds: how many seeds.
    """

    claim: str
    question: str
    source: str
    factors: str
    equal: str
    measure: str
    rule: str
    would_change: str
    data: str
    settings: str
    verdict: str
    finding: str
    effects: list[Effect]
    figures: list[Figure]
    tables: list[Table]
    runs: dict[str, int]
    seeds: int


@dataclass(frozen=True)
class Evidence:
    """All sections of a study, and what redoes it."""

    title: str
    preset: str
    command: str
    environment: dict[str, str]
    sections: list[Section]


def joined(several: Sequence[Evidence], command: str) -> Evidence:
    """The sections of several studies as one evidence.

    A claim that an earlier study has too follows it, and is named with its data.

    Args:
        several: at least one.
        command: joins them; told after the studies' own commands.
    """
    found: dict[str, list[Section]] = {}
    for section in (section for evidence in several for section in evidence.sections):
        same = found.setdefault(section.claim, [])
        name = f"{section.claim}, {section.data.partition(' (')[0]}" if same else section.claim
        same.append(replace(section, claim=name))
    sections = [section for same in found.values() for section in same]
    names = dict.fromkeys(name for evidence in several for name in evidence.environment)
    return Evidence(
        several[0].title if len(sections) == 1 else ALL,
        _each_once([evidence.preset for evidence in several], ", "),
        "\n".join([*(evidence.command for evidence in several), command]),
        {name: _each_once([e.environment[name] for e in several if name in e.environment], " / ") for name in names},
        sections,
    )


def _each_once(texts: Sequence[str], between: str) -> str:
    return between.join(dict.fromkeys(text for text in texts if text))
