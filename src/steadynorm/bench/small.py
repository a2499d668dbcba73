"""Small tensors, where what a call costs decides: microseconds, measured over batches of calls."""

from __future__ import annotations

from typing import Any

from .cases import FIRST, INFERENCE, PLAIN, RELU, TRAINING, Case
from .providers import IN_PLACE, OURS, TORCH, inputs, steps
from .record import Row
from .timing import in_batches, plain

SHAPES = [(60, 100), (128, 1024)]


def keys(quick: bool) -> list[dict[str, Any]]:
    """What to time; `quick`: fewer shapes."""
    return [
        {"shape": list(shape), "epilogue": epilogue, "mode": mode}
        for shape in (SHAPES[:1] if quick else SHAPES)
        for epilogue in (PLAIN, RELU)
        for mode in (TRAINING, INFERENCE)
    ]


def measure(shape: list[int], epilogue: str, mode: str) -> list[Row]:
    """One row, of a layer for (N, C), float32."""
    case = Case(tuple(shape), FIRST, "float32", epilogue, mode)
    timings = in_batches(steps(case, inputs(case), compiles=False))
    key = {"shape": shape, "epilogue": epilogue, "mode": mode}
    return [{**key, "timings": plain(timings)}]


HEADER = ("shape", "epilogue", "mode", "torch, µs", "in place, µs", "ours, µs", "times as fast", "as in place")


def table(rows: list[Row]) -> list[tuple[str, ...]]:
    """Microseconds a call, and how many times as fast as torch's layer and ReLU, and as with ReLU in place."""
    lines = []
    for row in rows:
        medians = {name: timing["median"] for name, timing in row["timings"].items()}
        ours, theirs, in_place = medians[OURS], medians[TORCH], medians.get(IN_PLACE)
        beside = f"{in_place * 1e3:.0f}" if in_place else "", f"{in_place / ours:.2f}" if in_place else ""
        where = str(tuple(row["shape"])), row["epilogue"], row["mode"]
        lines.append((*where, f"{theirs * 1e3:.0f}", beside[0], f"{ours * 1e3:.0f}", f"{theirs / ours:.2f}", beside[1]))
    return lines


def ratio(rows: list[Row], shape: tuple[int, ...], epilogue: str, mode: str) -> float | None:
    """How many times as fast as torch's layer and ReLU; None if it was not measured."""
    for row in rows:
        if (tuple(row["shape"]), row["epilogue"], row["mode"]) == (shape, epilogue, mode):
            return row["timings"][TORCH]["median"] / row["timings"][OURS]["median"]
    return None
