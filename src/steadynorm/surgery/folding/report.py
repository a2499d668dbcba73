"""What folding did, to be read and printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn


class Pair(NamedTuple):
    """A norm that is gone.

    Attributes:
        norm: its name in the model.
        into: names of the layers that took it in.
        kind: in the order of the forward, such as "Conv2d → BatchNorm2d".
        error: the largest difference it makes, relative to the largest value there, in the model's dtype.
        error_in_float64: the same in float64, with weights that are not rounded; None if that could not be run.
        note: what the proof does not cover; "" if nothing is left out.
    """

    norm: str
    into: tuple[str, ...]
    kind: str
    error: float
    error_in_float64: float | None
    note: str = ""


class Kept(NamedTuple):
    """A norm that stays, and why."""

    norm: str
    reason: str


@dataclass(frozen=True)
class Folded:
    """A folded model with its proof; `print` shows it as a table.

    Attributes:
        model: the copy without the norms.
        pairs: the norms that are gone.
        kept: those that stay, with the reason.
        error: the largest difference of the outputs on the example, relative to their largest value.
        error_in_float64: the same in float64, with weights that are not rounded; None if that could not be run.
        not_in_float64: why it could not; "" if it was.
    """

    model: nn.Module
    pairs: tuple[Pair, ...]
    kept: tuple[Kept, ...]
    error: float
    error_in_float64: float | None
    not_in_float64: str = ""

    def __str__(self) -> str:
        count = len(self.pairs) + len(self.kept)
        lines = [
            f"{len(self.pairs)} of {count} norms folded; largest error of the output {self.error:.1e}"
            f" ({_exactly(self.error_in_float64)} in float64)"
        ]
        if self.pairs:
            rows = [("norm", "into", "kind", "error", "in float64", "note" if any(p.note for p in self.pairs) else "")]
            rows += [
                (p.norm, ", ".join(p.into), p.kind, f"{p.error:.1e}", _exactly(p.error_in_float64), p.note)
                for p in self.pairs
            ]
            lines += ["", *_aligned(rows)]
        if self.kept:
            lines += ["", *_aligned([("kept", "because"), *self.kept])]
        if self.not_in_float64:
            lines += ["", f"not run in float64: {self.not_in_float64}"]
        return "\n".join(lines)


def _exactly(error: float | None) -> str:
    return "not run" if error is None else f"{error:.1e}"


def _aligned(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
