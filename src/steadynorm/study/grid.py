"""A grid of runs, each kept as soon as it is finished; runs already there are not repeated."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from torch import nn

from .. import records
from ..errors import RecordError
from ..records import Records, Run, Spec
from .data import ImageData
from .training import Settings, steps_per_epoch, train


class Watcher(Protocol):
    """Who is told how a grid proceeds."""

    def begin(self, variant: str, seed: int, steps: int) -> None:
        """A run of that many optimizer steps starts."""

    def step(self, loss: float, accuracy: float) -> None:
        """A step is done; loss and accuracy are the epoch's so far."""

    def end(self, run: Run) -> None:
        """The run is finished and kept."""


def open_records(directory: Path, spec: Spec, command: str, environment: dict[str, str]) -> Records:
    """The records of this study in `directory`, made there if it is new.

    Raises:
        RecordError: `directory` holds another study, or one of another environment, or cannot be written to.
    """
    fresh = Records(spec, command, environment)
    if records.exist(directory):
        found = records.read(directory)
        before, now = ({**dataclasses.asdict(r.spec), **r.environment} for r in (found, fresh))
        if before != now:
            changes = (
                f"{name}: {value!r}, now {now.get(name)!r}" for name, value in before.items() if value != now.get(name)
            )
            raise RecordError(
                f"{directory} holds a study with other settings ({', '.join(changes)}). "
                "Choose another --out, or remove that folder."
            )
        return found
    records.write(directory, fresh)
    return fresh


def run_grid(
    build: Mapping[str, Callable[[], nn.Module]],
    data: ImageData,
    directory: Path,
    kept: Records,
    watcher: Watcher,
) -> Records:
    """Trains every (variant, seed) of `kept` that has no run yet, and returns the records with all of them."""
    spec = kept.spec
    settings = Settings(spec.epochs, spec.batch_size, spec.lr, spec.optimizer)
    for variant, seed in kept.wanted:
        if kept.find(variant, seed) is not None:
            continue
        watcher.begin(variant, seed, spec.epochs * steps_per_epoch(data, settings))
        run = train(build[variant], variant, data, settings, seed, watcher.step)
        kept = dataclasses.replace(kept, runs=[*kept.runs, run])
        records.write(directory, kept)
        watcher.end(run)
    return kept
