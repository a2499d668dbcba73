"""A study: cells planned and kept in a folder, computed, and judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .. import records
from ..errors import RecordError
from ..records import (
    ALL,
    CRASHED,
    DIVERGED,
    EVIDENCE,
    FINISHED,
    STUDY,
    Cell,
    Data,
    Evidence,
    Run,
    Section,
    Study,
    Table,
)
from .claim import Claim
from .environment import environment
from .results import Results
from .runner import Engine, run_grid
from .tools import cached


def run(
    claims: Mapping[str, Claim],
    cells: Sequence[Cell],
    directory: Path,
    *,
    preset: str,
    command: str,
    data_directory: Path | None = None,
    data: Mapping[str, Data] | None = None,
    engine: Engine | None = None,
    watch: Callable[[float], None] = lambda done: None,
) -> Evidence:
    """Runs a study, or what is left of it, in `directory`, and judges it.

    Args:
        claims: by name.
        cells: every run.
        directory: the study's folder; one that holds the same study is gone on with.
        preset: of the claims' settings, for the report.
        command: the command line that redoes it.
        data_directory: where data files are.
        data: what the runs' data is, where it is not one of ours.
        engine: where to compute.
        watch: see `runner.run_grid`.

    Raises:
        RecordError: `directory` holds another study, or cannot be written to.
        DataError: a data set is missing or damaged.
    """
    engine = engine or Engine()
    names = dict.fromkeys(str(cell.settings["data"]) for cell in cells if "data" in cell.settings)
    described = dict(data or {}) or {name: _described(name, data_directory) for name in names}
    here = {**environment(), "threads": str(engine.threads)}
    _open(directory, Study(preset, list(cells), described, command, here))
    run_grid(claims, cells, directory, data_directory, engine, watch)
    return judge(claims, directory)


def judge(claims: Mapping[str, Claim], directory: Path) -> Evidence:
    """Judges what runs there are in `directory`, and writes evidence.json beside them.

    Raises:
        RecordError: it holds no study, or a damaged one.
    """
    study = records.read(directory / STUDY, Study)
    runs = records.finished(directory, study)
    sections = [_section(claims[name], study, [run for run in runs if run.cell.claim == name]) for name in study.claims]
    title = claims[study.claims[0]].question if len(study.claims) == 1 else ALL
    evidence = Evidence(title, study.preset, study.command, study.environment, sections)
    records.write(directory / EVIDENCE, evidence)
    return evidence


def _described(name: str, directory: Path | None) -> Data:
    found = cached(name, directory)
    return Data(found.title, found.sha256, found.examples)


def _open(directory: Path, study: Study) -> None:
    """Keeps the study in its folder, or finds it there."""
    path = directory / STUDY
    if not records.exists(path):
        records.write(path, study)
        return
    found = records.read(path, Study)
    if changes := _changes(found, study):
        raise RecordError(
            f"{directory} holds a study with other settings ({', '.join(changes)}). "
            "Choose another --out, or remove that folder."
        )


def _changes(found: Study, wanted: Study) -> list[str]:
    changes = [
        f"{name}: {found.environment.get(name)!r}, now {wanted.environment.get(name)!r}"
        for name in {**found.environment, **wanted.environment}
        if found.environment.get(name) != wanted.environment.get(name)
    ]
    changes += [f"data {name}" for name in wanted.data if found.data.get(name) != wanted.data[name]]
    if found.cells != wanted.cells:
        changes.append(_change_of_cells(found, wanted))
    return changes


def _change_of_cells(found: Study, wanted: Study) -> str:
    if found.claims != wanted.claims:
        return f"claims: {', '.join(found.claims)}, now {', '.join(wanted.claims)}"
    if len(found.cells) != len(wanted.cells):
        return f"{len(found.cells)} runs, now {len(wanted.cells)}"
    before, now = next((a, b) for a, b in zip(found.cells, wanted.cells, strict=True) if a != b)
    old, new = ({**cell.settings, **cell.factors, "seed": cell.seed} for cell in (before, now))
    return ", ".join(f"{k}: {old.get(k)!r}, now {new.get(k)!r}" for k in {**old, **new} if old.get(k) != new.get(k))


def _section(claim: Claim, study: Study, runs: list[Run]) -> Section:
    cells = [cell for cell in study.cells if cell.claim == claim.name]
    judgement = claim.judge(Results(runs))
    counts = {status: sum(run.status == status for run in runs) for status in (FINISHED, DIVERGED, CRASHED)}
    name = cells[0].settings.get("data")
    return Section(
        claim.name,
        claim.question,
        claim.source,
        claim.factors,
        claim.equal,
        claim.measure,
        claim.rule,
        claim.would_change,
        study.data[str(name)].title if name is not None else "none: computed from random numbers",
        records.settings_in_words({k: v for k, v in cells[0].settings.items() if k != "data"}),
        judgement.verdict,
        judgement.finding,
        judgement.effects,
        judgement.figures,
        [*judgement.tables, *_crashes(runs)],
        {**counts, "missing": len(cells) - len(runs)},
        len({cell.seed for cell in cells}),
    )


def _crashes(runs: list[Run]) -> list[Table]:
    """What happened to the runs that crashed, if any did."""
    rows: list[list[float | str | None]] = [[r.cell.label, r.message] for r in runs if r.status == CRASHED]
    return [Table("Crashed runs", ["run", "what happened"], rows)] if rows else []
