"""What a study asks for, and what each of its runs gave."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from . import files

Setting = bool | int | float | str | None
FINISHED, DIVERGED, CRASHED = "finished", "diverged", "crashed"


@dataclass(frozen=True)
class Cell:
    """One run of a grid: all that decides its result. Equal cells on equal machines give equal bits.

    Attributes:
        claim: the name of the claim it belongs to.
        factors: what varies within the claim, such as {"network": "with BN", "lr": 0.1}.
        seed: of initial weights, data order and noise; runs of one seed are paired.
        settings: what is held equal within the claim, such as {"steps": 500, "batch_size": 64}.
    """

    claim: str
    factors: dict[str, Setting]
    seed: int
    settings: dict[str, Setting]

    @property
    def label(self) -> str:
        """The run in words, such as "cnn: with BN, lr 0.1, seed 0"."""
        factors = (
            str(v) if isinstance(v, str) else f"{name} {v:g}" for name, v in self.factors.items() if v is not None
        )
        return f"{self.claim}: {', '.join([*factors, f'seed {self.seed}'])}"

    @property
    def key(self) -> str:
        """A file name, readable and unique."""
        words = re.sub(r"[^A-Za-z0-9.]+", "-", self.label.partition(": ")[2]).strip("-")
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return f"{words[:80]}-{digest[:8]}"


@dataclass(frozen=True)
class Series:
    """A measure over steps (or depth, or another number); None where it is not finite."""

    x: list[float]
    y: list[float | None]


@dataclass(frozen=True)
class Run:
    """What a cell gave.

    Attributes:
        cell: the cell.
        status: "finished"; "diverged", where training met a loss that is not finite and was stopped there; or
            "crashed", with no values.
        message: "", or what happened.
        values: figures of merit; None where not finite.
        series: figures over steps.
        seconds: processor times, by name: the only content that differs when the run is repeated.
    """

    cell: Cell
    status: str
    message: str = ""
    values: dict[str, float | None] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def timeless(self) -> Run:
        """The run without its times: equal for equal cells."""
        return replace(self, seconds={})


@dataclass(frozen=True)
class Data:
    """A data set: a report's title for it, a fingerprint, and how many examples each part has."""

    title: str
    sha256: str
    examples: dict[str, int]


@dataclass(frozen=True)
class Study:
    """What was asked for: the runs, on which data, by which command, in which environment.

    Attributes:
        preset: the preset of the claims' settings; "" where there is none.
        cells: every run.
        data: data sets by name.
        command: the command line that redoes the study, or goes on with it.
        environment: versions, processor, threads a run.
    """

    preset: str
    cells: list[Cell]
    data: dict[str, Data]
    command: str
    environment: dict[str, str]

    @property
    def claims(self) -> list[str]:
        """The claims, in order."""
        return list(dict.fromkeys(cell.claim for cell in self.cells))


STUDY, EVIDENCE = "study.json", "evidence.json"


def place(directory: Path, cell: Cell, ending: str = "json") -> Path:
    """Where a run is kept in a study's folder, or (ending "pt") its checkpoint while it is in progress."""
    return directory / "runs" / cell.claim / f"{cell.key}.{ending}"


def finished(directory: Path, study: Study) -> list[Run]:
    """The runs there are, in the order of the cells.

    Raises:
        RecordError: one is damaged or of another cell.
    """
    found = []
    for cell in study.cells:
        path = place(directory, cell)
        if files.exists(path):
            run = files.read(path, Run)
            if run.cell != cell:
                raise files.RecordError(f"{path} is of another run: {run.cell.label}. Remove it.")
            found.append(run)
    return found


def settings_in_words(settings: dict[str, Any]) -> str:
    """Such as "steps 500, batch size 64"."""
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items())
