"""What a study found, on a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from .. import records
from ..records import CONTRADICTED, SUPPORTED, UNDECIDED, Effect, Evidence, Section
from ..records.words import NONE, estimate, gaps, interval, is_number, leading, number, runs

COLOURS = {SUPPORTED: "bold green", CONTRADICTED: "bold red", UNDECIDED: "bold yellow"}
ROWS = 30
"""So many of a table's rows are shown."""


def show(evidence: Evidence) -> RenderableType:
    """One claim in full, or a line for each of several."""
    if len(evidence.sections) == 1:
        return Group(*_claim(evidence.sections[0]))
    return Group(Text(evidence.title, "bold"), _ledger(evidence))


def _ledger(evidence: Evidence) -> Table:
    table = _table()
    table.add_column("claim", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    table.add_column("effect")
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("95% interval", justify="right")
    for section in evidence.sections:
        effect = leading(section)
        found = (effect.label, estimate(effect), interval(effect)) if effect else ("none measured", NONE, NONE)
        verdict = Text.assemble(_verdict(section), (f"\n{gaps(section)}" if gaps(section) else "", "dim"))
        table.add_row(Text(section.claim), verdict, *map(Text, found))
    return table


def _claim(section: Section) -> Iterator[RenderableType]:
    yield Text(section.question, "bold")
    yield Text.assemble(_verdict(section), ": ", section.finding)
    yield Text(f"{section.data}; runs: {runs(section)}", "dim")
    if section.effects:
        yield Text("\nEffects", "bold")
        yield _effects(section.effects)
    for table in section.tables:
        yield Text(f"\n{table.title}", "bold")
        yield _numbers(table)
        if len(table.rows) > ROWS:
            yield Text(f" and {len(table.rows) - ROWS} more rows in the report", "dim")


def _effects(effects: list[Effect]) -> Table:
    table = _table()
    table.add_column("")
    for name in ("estimate", "95% interval", "pairs"):
        table.add_column(name, justify="right", no_wrap=True)
    for effect in effects:
        label = Text(effect.label) if effect.decides else Text(effect.label).append(" (beside)", "dim")
        table.add_row(label, estimate(effect), interval(effect), str(effect.pairs))
    return table


def _numbers(found: records.Table) -> Table:
    table = _table()
    for place, name in enumerate(found.columns):
        right = is_number([row[place] for row in found.rows])
        table.add_column(Text(name), justify="right" if right else "left", vertical="bottom")
    for row in found.rows[:ROWS]:
        table.add_row(*(Text(number(value)) for value in row))
    return table


def _verdict(section: Section) -> Text:
    return Text(section.verdict, COLOURS.get(section.verdict, "bold"))


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
