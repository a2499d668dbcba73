"""A study's records: one versioned JSON file with everything needed to redo the study and to draw its report."""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .errors import RecordError

FORMAT = "steadynorm-study"
VERSION = 1
FILE_NAME = "records.json"


@dataclass(frozen=True)
class Epoch:
    """One pass over the training data. Losses are mean cross-entropies in nats, accuracies shares in [0, 1].

    Training figures are averages over the epoch's batches, in train mode, while the weights moved; validation figures
    are taken after it, in eval mode. A loss that is not finite is None.
    """

    seconds: float
    train_loss: float | None
    train_accuracy: float
    validation_loss: float | None
    validation_accuracy: float


@dataclass(frozen=True)
class Run:
    """One network trained once; test figures are those of the last epoch's weights, in eval mode."""

    variant: str
    seed: int
    steps_per_epoch: int
    epochs: list[Epoch]
    test_loss: float | None
    test_accuracy: float


@dataclass(frozen=True)
class Spec:
    """What was asked for. Two studies with equal specs train the same networks on the same data."""

    study: str
    data: str
    data_title: str
    data_sha256: str
    examples: dict[str, int]
    variants: list[str]
    seeds: list[int]
    epochs: int
    batch_size: int
    lr: float
    optimizer: str


@dataclass(frozen=True)
class Records:
    """A study: its spec, the command and environment that ran it, and the runs finished so far."""

    spec: Spec
    command: str
    environment: dict[str, str]
    runs: list[Run] = field(default_factory=list)

    def find(self, variant: str, seed: int) -> Run | None:
        """The finished run of that variant and seed, if any."""
        return next((run for run in self.runs if (run.variant, run.seed) == (variant, seed)), None)

    @property
    def wanted(self) -> list[tuple[str, int]]:
        """Every (variant, seed) of the study; variants of one seed follow each other."""
        return [(variant, seed) for seed in self.spec.seeds for variant in self.spec.variants]


def finite(value: float) -> float | None:
    """`value`, or None, which JSON can hold, if it is inf or nan."""
    return value if math.isfinite(value) else None


def write(directory: Path, records: Records) -> None:
    """Writes `directory`/records.json in one step: a reader, or a crash, sees the old file or the new one.

    Raises:
        RecordError: the directory cannot be made or written to.
    """
    document = {"format": FORMAT, "version": VERSION, **asdict(records)}
    text = json.dumps(document, indent=1, allow_nan=False)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=directory, prefix=FILE_NAME, suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(directory / FILE_NAME)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RecordError(f"cannot write to {directory}: {error.strerror}. Choose another --out.") from error


def exist(directory: Path) -> bool:
    """Whether `directory` can be looked into and holds records."""
    try:
        return (directory / FILE_NAME).is_file()
    except OSError:
        return False


def read(directory: Path) -> Records:
    """The records in `directory`.

    Raises:
        RecordError: there are none, or they are damaged or of another version.
    """
    path = directory / FILE_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(f"no {FILE_NAME} in {directory}. Run `steadynorm study --out {directory}` first.") from None
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot read {path}: {error}. Run the study again in another folder.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise RecordError(f"{path} is not a steadynorm study: expected format {FORMAT!r}.")
    if document.get("version") != VERSION:
        raise RecordError(
            f"{path} has version {document.get('version')!r}, this steadynorm reads version {VERSION}. "
            "Run the study again, or use the steadynorm that wrote it."
        )
    try:
        return _records(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise RecordError(f"{path} is damaged: {error!r}. Run the study again in another folder.") from error


def _records(document: dict[str, Any]) -> Records:
    runs = [Run(**{**run, "epochs": [Epoch(**epoch) for epoch in run["epochs"]]}) for run in document["runs"]]
    return Records(Spec(**document["spec"]), document["command"], document["environment"], runs)
