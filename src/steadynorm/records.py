"""A study's records: one versioned JSON file with everything needed to redo the study and to draw its report."""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

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
    """What was asked for. Equal specs in equal environments train the same networks on the same data."""

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
    """Writes `directory`/records.json, see `replace`."""
    document = {"format": FORMAT, "version": VERSION, **asdict(records)}
    replace(directory / FILE_NAME, json.dumps(document, indent=1, allow_nan=False).encode())


def replace(path: Path, content: bytes) -> None:
    """Writes a file in one step: a reader, or a crash, sees the old content or the new.

    Raises:
        RecordError: its folder cannot be made or written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o644)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise RecordError(f"cannot write to {path.parent}: {error.strerror}. Choose another --out.") from error


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
    content = {name: value for name, value in document.items() if name not in ("format", "version")}
    try:
        records = _typed(Records, content)
        _check_runs(records)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{path} is damaged: {error}. Run the study again in another folder.") from error
    return records


def _typed(kind: Any, value: Any) -> Any:
    """`value` of JSON as `kind`: a dataclass of this file, or the types its fields have."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            raise TypeError(f"expected {', '.join(hints)} for {kind.__name__}, got {value!r:.80}")  # type: ignore[union-attr]
        return kind(**{name: _typed(hint, value[name]) for name, hint in hints.items()})  # type: ignore[operator]
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is list and isinstance(value, list):
        return [_typed(arguments[0], item) for item in value]
    if origin is dict and isinstance(value, dict):
        return {_typed(arguments[0], key): _typed(arguments[1], item) for key, item in value.items()}
    if origin is None and isinstance(value, (int, float) if kind is float else kind) and not isinstance(value, bool):
        return value
    if value is None and type(None) in arguments:
        return None
    if origin is UnionType:
        return _typed(arguments[0], value)
    raise TypeError(f"expected {kind}, got {value!r:.80}")


def _check_runs(records: Records) -> None:
    """Raises ValueError for a run that is not of this study, there twice, or of another length."""
    done = [(run.variant, run.seed) for run in records.runs]
    if len(set(done)) != len(done) or not set(done) <= set(records.wanted):
        raise ValueError(f"its runs {done} are not runs of {records.wanted}, once each")
    if any(len(run.epochs) != records.spec.epochs for run in records.runs):
        raise ValueError(f"expected {records.spec.epochs} epochs in each run")
