"""The evidence as a Markdown document, with its pictures beside it."""

from __future__ import annotations

from ..records import Effect, Evidence, Section, Table
from ..records.words import NONE, estimate, gaps, interval, is_number, leading, number, runs
from .names import stems

BOLD = ("supported", "contradicted")


def render(evidence: Evidence, figures: str, source: str) -> str:
    """The document: a ledger, then a section for each claim.

    Args:
        evidence: what was found.
        figures: where the pictures are, seen from the document, such as "images/evidence".
        source: the record it is made from, as a reader finds it.
    """
    names = stems(evidence)
    parts = [
        f"# {evidence.title}",
        "Measured, not assumed: each claim of the literature about batch normalization as an experiment. Everything on "
        f"this page is generated from [one record]({source}) by `make docs`; the record is made by",
        f"```\n{evidence.command}\n```",
        "A verdict needs the 95% interval over paired seeds to lie on one side of no effect; a single run decides "
        f"nothing. On {_machine(evidence)}.",
        _ledger(evidence, names),
    ]
    for name, section in zip(names, evidence.sections, strict=True):
        parts.extend(_section(section, name, figures))
    return "\n\n".join(parts) + "\n"


def _machine(evidence: Evidence) -> str:
    return ", ".join(f"{name} {value}" for name, value in evidence.environment.items())


def _ledger(evidence: Evidence, names: list[str]) -> str:
    rows = [
        [
            f"[{_plain(s.claim)}](#{name.lower()})",
            f"{_verdict(s)} {gaps(s)}".strip(),
            *_effect(leading(s)),
            _plain(s.source),
        ]
        for name, s in zip(names, evidence.sections, strict=True)
    ]
    return _table(["claim", "verdict", "effect", "estimate", "95% interval", "source"], rows)


def _section(section: Section, name: str, figures: str) -> list[str]:
    facts = {
        "Varied": section.factors,
        "Equal": section.equal,
        "Measured": section.measure,
        "Rule": section.rule,
        "What would change it": section.would_change,
        "Data": section.data,
        "Settings": section.settings,
        "Runs": runs(section),
    }
    parts = [
        f"## {_plain(section.claim)}",
        f"{_plain(section.question)} Verdict: {_verdict(section)}. {_plain(section.finding)}",
        _table(["effect", "estimate", "95% interval"], [_effect(effect) for effect in section.effects]),
    ]
    for place, figure in enumerate(section.figures, 1):
        parts.append(f"![{_plain(figure.title)}]({figures}/{name}-{place}.png)")
        parts.append(_plain(figure.caption))
    for table in section.tables:
        parts.append(f"{_plain(table.title)}:\n\n{_numbers(table)}")
    parts.append("\n".join(f"- {label}: {_plain(text)}" for label, text in facts.items()))
    return parts


def _verdict(section: Section) -> str:
    return f"**{section.verdict}**" if section.verdict in BOLD else _plain(section.verdict)


def _effect(effect: Effect | None) -> list[str]:
    return [NONE] * 3 if effect is None else [_plain(effect.label), estimate(effect), interval(effect)]


def _numbers(table: Table) -> str:
    right = [is_number([row[place] for row in table.rows]) for place in range(len(table.columns))]
    return _table(table.columns, [[_plain(number(value)) for value in row] for row in table.rows], right)


def _table(columns: list[str], rows: list[list[str]], right: list[bool] | None = None) -> str:
    sides = ["--:" if place else "---" for place in right or [False] * len(columns)]
    lines = [[_plain(column) for column in columns], sides, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    for letter in "\\`*_[]<>|#":
        text = text.replace(letter, f"\\{letter}")
    return text.replace("\n", " ")
