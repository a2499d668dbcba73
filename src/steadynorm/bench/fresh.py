"""What a fresh process pays: seconds until the first training step is done, and the memory it then holds."""

from __future__ import annotations

import statistics
from typing import Any

from .processes import ask
from .providers import OURS, TORCH
from .record import Row
from .timing import plain, summed_up

FIRST_STEP = "first step"


def keys(quick: bool) -> list[dict[str, Any]]:
    """What to measure, and in how many processes of each."""
    return [{"what": FIRST_STEP, "processes": 2 if quick else 7}]


def measure(what: str, processes: int) -> list[Row]:
    """One row: milliseconds, and megabytes resident after the step and at most, by provider; processes in turns."""
    answers: dict[str, list[dict[str, Any]]] = {OURS: [], TORCH: []}
    ask(
        {"what": what, "variant": OURS}
    )  # what is not in the disk's cache yet, nor compiled to bytecode, is not counted
    for _ in range(processes):
        for name, found in answers.items():
            found.append(ask({"what": what, "variant": name}))
    row: Row = {"what": what, "processes": processes}
    seconds = {name: [answer["seconds"] for answer in found] for name, found in answers.items()}
    row["timings"] = plain({name: summed_up([value * 1e3 for value in values]) for name, values in seconds.items()})
    for memory in ("resident_megabytes", "peak_megabytes"):
        row[memory] = {name: _median([answer[memory] for answer in found]) for name, found in answers.items()}
    return [row]


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


HEADER = ("fresh process", "torch", "ours", "beyond torch's")


def table(rows: list[Row]) -> list[tuple[str, ...]]:
    """Seconds and megabytes beside torch's."""
    lines = []
    for row in rows:
        seconds = [row["timings"][name]["median"] / 1e3 for name in (TORCH, OURS)]
        lines.append((f"import, build and {row['what']}, s", *_beside(seconds, 2)))
        for memory, said in (("resident_megabytes", "memory after it, MB"), ("peak_megabytes", "at most, MB")):
            known = [row[memory][name] for name in (TORCH, OURS)]
            if None not in known:
                lines.append((said, *_beside(known, 1)))
    return lines


def beyond(rows: list[Row]) -> tuple[float, float | None] | None:
    """Seconds and resident megabytes beyond torch's; None if it was not measured."""
    if not rows:
        return None
    median, resident = rows[0]["timings"], rows[0]["resident_megabytes"]
    known = None not in resident.values()
    seconds = (median[OURS]["median"] - median[TORCH]["median"]) / 1e3
    return seconds, resident[OURS] - resident[TORCH] if known else None


def _beside(values: list[float], digits: int) -> tuple[str, ...]:
    theirs, ours = values
    return f"{theirs:.{digits}f}", f"{ours:.{digits}f}", f"{ours - theirs:+.{digits}f}"
