"""What a benchmark measured, as one versioned JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT, VERSION = "steadynorm-benchmark", 1


@dataclass
class Benchmark:
    """Rows of plain values: what was timed, and by provider milliseconds and errors."""

    environment: dict[str, str]
    cases: list[dict[str, Any]] = field(default_factory=list)
    networks: list[dict[str, Any]] = field(default_factory=list)
    peers: list[dict[str, Any]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1)
        draft = path.with_suffix(".part")
        draft.write_text(text + "\n", encoding="utf-8")
        draft.replace(path)
