"""What became of running statistics, layer by layer, and how that is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Shift:
    """What a layer's running statistics were and are; each (C,), float64.

    Attributes:
        old_mean: the running mean before.
        old_var: the running variance before; of a whitening layer, the diagonal of its covariance.
        mean: the running mean now, before rounding to the layer's dtype.
        var: the running variance now, likewise.
        count: how many values a channel were measured, over all ranks.
        shift: (mean - old_mean) / sqrt(old_var + eps), in standard deviations as the layer knew them.
        change: how far the statistics went when the number of batches doubled last, in standard deviations: the
            largest of all channels, of the mean's way and of the logarithm of the standard deviation. None where no
            tolerance asked for it.
    """

    old_mean: Tensor
    old_var: Tensor
    mean: Tensor
    var: Tensor
    count: Tensor
    shift: Tensor
    change: float | None = None


class Shifts(dict[str, Shift]):
    """`Shift` by the layer's name, in the model's order; printed, a table.

    Attributes:
        batches: how many batches of data were read on this rank, in each pass.
        converged: whether `tolerance` was met; None where it was not asked for.
    """

    def __init__(self, found: Mapping[str, Shift], batches: int, converged: bool | None) -> None:
        super().__init__(found)
        self.batches = batches
        self.converged = converged

    def __str__(self) -> str:
        rows = [_row(name, shift) for name, shift in self.items()]
        if self.converged is None:
            head, rows = _HEAD[:-1], [row[:-1] for row in rows]
        else:
            head = _HEAD
        widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
        lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in (head, *rows)]
        return "\n".join([*lines, self._last_line()])

    def _last_line(self) -> str:
        read = f"{self.batches} batch{'' if self.batches == 1 else 'es'}"
        return read if self.converged is None else f"{read}, {'converged' if self.converged else 'not converged'}"


_HEAD = ("layer", "values", "largest shift (sd)", "new var / old var", "last change (sd)")


def _row(name: str, shift: Shift) -> tuple[str, ...]:
    ratio = shift.var / shift.old_var
    return (
        name or "(the model)",
        f"{shift.count.max():.0f}",
        f"{round(shift.shift[shift.shift.abs().argmax()].item(), 3) + 0.0:+.3f}",
        f"{ratio.min():.3g} to {ratio.max():.3g}",
        "" if shift.change is None else f"{shift.change:.2g}",
    )
