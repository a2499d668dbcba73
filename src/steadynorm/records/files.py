"""Versioned JSON files, written in one step and read as the dataclasses they were."""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import RecordError

VERSION = 2
Record = TypeVar("Record")


def finite(value: float) -> float | None:
    """`value`, or None, which JSON can hold, if it is inf or nan."""
    return value if math.isfinite(value) else None


def write(path: Path, record: Any) -> None:
    """Writes a dataclass of plain values to `path`, see `replace`."""
    document = {"format": _format(type(record)), "version": VERSION, **asdict(record)}
    replace(path, json.dumps(document, indent=1, allow_nan=False).encode())


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


def read(path: Path, kind: type[Record]) -> Record:
    """The record in `path`.

    Raises:
        RecordError: there is none, or it is damaged or of another kind or version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RecordError(
            f"no {path.name} in {path.parent}. Run `steadynorm study --out {path.parent}` first."
        ) from None
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot read {path}: {error}. Run the study again in another folder.") from error
    if not isinstance(document, dict) or document.get("format") != _format(kind):
        raise RecordError(f"{path} is not what its name says: expected format {_format(kind)!r}.")
    if document.get("version") != VERSION:
        raise RecordError(
            f"{path} has version {document.get('version')!r}, this steadynorm reads version {VERSION}. "
            "Run the study again, or use the steadynorm that wrote it."
        )
    content = {name: value for name, value in document.items() if name not in ("format", "version")}
    try:
        return _typed(kind, content)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{path} is damaged: {error}. Run the study again in another folder.") from error


def exists(path: Path) -> bool:
    """Whether there is such a file, in a folder that can be looked into."""
    try:
        return path.is_file()
    except OSError:
        return False


def _format(kind: type) -> str:
    return f"steadynorm-{kind.__name__.lower()}"


def _typed(kind: Any, value: Any) -> Any:
    """`value` of JSON as `kind`: a dataclass, or the types its fields have."""
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
    if origin in (UnionType, Union):
        return _any_of(arguments, value)
    if origin is None and isinstance(value, (int, float) if kind is float else kind):
        if isinstance(value, bool) == (kind is bool):
            return value
    raise TypeError(f"expected {getattr(kind, '__name__', kind)}, got {value!r:.80}")


def _any_of(kinds: tuple[Any, ...], value: Any) -> Any:
    for kind in kinds:
        try:
            return _typed(kind, value)
        except TypeError:
            continue
    raise TypeError(f"expected {' or '.join(kind.__name__ for kind in kinds)}, got {value!r:.80}")
