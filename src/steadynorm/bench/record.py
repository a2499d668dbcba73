"""What a benchmark measured, as one versioned JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import RecordError
from .folding import FOLDED
from .providers import OURS, TORCH
from .timing import Timing

FORMAT, VERSION = "steadynorm-benchmark", 2
REMEDY = "Choose another --out, or delete that file."
DIGITS = 6
"""Significant digits of a number in the file."""
Row = dict[str, Any]

_TIMED = {"order": str, "mode": str, "timings": dict}
_CASE = {"shape": list, "dtype": str, "epilogue": str, "megabytes": float, "floor_ms": float, "errors": dict}
_COLUMNS: dict[str, dict[str, Any]] = {
    "cases": {**_CASE, **_TIMED},
    "networks": {"depth": int, "batch": int, "pixels": int, **_TIMED},
    "relatives": {"shape": list, "order": str, "timings": dict},
    "studies": {"what": str, "size": int, "timings": dict},
    "folding": {"network": str, "batch": int, "pixels": int, "order": str, "timings": dict},
    "cold": {
        **{"shape": list, "epilogue": str, "count": int, "megabytes": float, "moved_megabytes": float},
        **{"copy_gb_s": float, "autograd_ms": float, **_TIMED},
    },
    "small": {"shape": list, "epilogue": str, "mode": str, "timings": dict},
    "fresh": {"what": str, "timings": dict, "resident_megabytes": dict, "peak_megabytes": dict},
    "exactness": {"shape": list, "order": str, "mean": float, "largest": dict, "errors": dict},
    "install": {"what": str, "seconds": float},
    "peers": {"framework": str, "shape": list, "mode": str, "median": (float, type(None))},
}
"""What every row has, and of which type."""
_PROVIDERS = {"relatives": {OURS}, "folding": {FOLDED, TORCH}, "studies": set()}
"""Who must have been timed; ours and torch's layers where nothing is said."""


@dataclass
class Benchmark:
    """Rows of plain values: what was timed, and by provider milliseconds and errors."""

    environment: dict[str, str]
    cold: list[Row] = field(default_factory=list)
    small: list[Row] = field(default_factory=list)
    cases: list[Row] = field(default_factory=list)
    fresh: list[Row] = field(default_factory=list)
    networks: list[Row] = field(default_factory=list)
    exactness: list[Row] = field(default_factory=list)
    relatives: list[Row] = field(default_factory=list)
    folding: list[Row] = field(default_factory=list)
    studies: list[Row] = field(default_factory=list)
    install: list[Row] = field(default_factory=list)
    peers: list[Row] = field(default_factory=list)

    def encode(self) -> bytes:
        """The content of its file: one row a line, numbers with `DIGITS` significant digits."""
        parts = {"format": json.dumps(FORMAT), "version": json.dumps(VERSION)}
        for name, value in _short(asdict(self)).items():
            lines = ",\n".join(json.dumps(row, allow_nan=False) for row in value) if isinstance(value, list) else ""
            parts[name] = f"[\n{lines}\n]" if lines else json.dumps(value)
        return ("{\n" + ",\n".join(f"{json.dumps(name)}: {text}" for name, text in parts.items()) + "\n}\n").encode()


def open_benchmark(path: Path, settings: dict[str, str]) -> Benchmark:
    """The benchmark in `path`, to go on with, or a new one where there is no such file.

    Args:
        path: of the file.
        settings: what its environment must say; it may say more.

    Raises:
        RecordError: the file is damaged, no benchmark, or one with other settings.
    """
    found = read(path)
    if found is None:
        return Benchmark(settings)
    changes = [
        f"{name}: {found.environment.get(name)!r}, now {value!r}"
        for name, value in settings.items()
        if found.environment.get(name) != value
    ]
    if changes:
        raise RecordError(f"{path} holds a benchmark with other settings ({', '.join(changes)}). {REMEDY}")
    return found


def read(path: Path) -> Benchmark | None:
    """The benchmark in `path`, or None if there is no such file.

    Raises:
        RecordError: it cannot be read, is damaged, or is no benchmark of this version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise RecordError(f"cannot read {path}: {error}. {REMEDY}") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise RecordError(f"{path} is not a steadynorm benchmark: expected format {FORMAT!r}. {REMEDY}")
    if document.get("version") != VERSION:
        version = document.get("version")
        raise RecordError(f"{path} has version {version!r}, this steadynorm reads version {VERSION}. {REMEDY}")
    try:
        benchmark = Benchmark(**{name: value for name, value in document.items() if name not in ("format", "version")})
        _check(benchmark)
    except (TypeError, ValueError) as error:
        raise RecordError(f"{path} is damaged: {error}. {REMEDY}") from error
    return benchmark


def _short(value: Any) -> Any:
    """`value` with the numbers in it rounded."""
    if isinstance(value, dict):
        return {name: _short(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_short(inner) for inner in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _check(benchmark: Benchmark) -> None:
    """Raises TypeError or ValueError for what is not as `Benchmark` and `_COLUMNS` say."""
    if not isinstance(benchmark.environment, dict):
        raise TypeError(f"expected an environment, got {benchmark.environment!r:.80}")
    for kind, columns in _COLUMNS.items():
        for row in getattr(benchmark, kind):
            if not isinstance(row, dict):
                raise TypeError(f"expected a row of {kind}, got {row!r:.80}")
            for name, expected in columns.items():
                if name not in row or not isinstance(row[name], expected):
                    raise TypeError(f"expected {name} in each row of {kind}, got {row!r:.80}")
            if "timings" in columns:
                _check_timings(row["timings"], _PROVIDERS.get(kind, {OURS, TORCH}))


def _check_timings(timings: dict[str, Any], wanted: set[str]) -> None:
    if not wanted <= timings.keys():
        raise ValueError(f"expected timings of {' and '.join(sorted(wanted))}, got {timings!r:.80}")
    for timing in timings.values():
        if not Timing(**timing).median > 0:
            raise ValueError(f"expected milliseconds above 0, got {timing!r:.80}")
