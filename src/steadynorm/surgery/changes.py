"""What a rewriting verb did, and what it left alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn


class Change(NamedTuple):
    """One layer: its name in the model ("" for the model itself), what it was, what it is now, and why or at what cost.

    `before` and `after` are the same for a layer that was kept.
    """

    name: str
    before: str
    after: str
    reason: str = ""

    def __str__(self) -> str:
        what = f"{self.before} kept" if self.before == self.after else f"{self.before} → {self.after}"
        return f"{self.name or '(the model)'}: {what}{f' ({self.reason})' if self.reason else ''}"


class Changes(list[Change]):
    """What changed, in the model's order; printed one line a layer.

    Attributes:
        kept: layers that might have been meant and are as before, each with the reason.
    """

    def __init__(self, made: Iterable[Change] = (), kept: Iterable[Change] = ()) -> None:
        super().__init__(made)
        self.kept = list(kept)

    def __repr__(self) -> str:
        lines = [f"{len(self)} changed, {len(self.kept)} kept", *map(str, self), *map(str, self.kept)]
        return "\n".join(lines)

    __str__ = __repr__


def kind(layer: nn.Module) -> str:
    """A layer's class as a reader knows it: torch.nn.BatchNorm2d, steadynorm.BatchNorm2d."""
    home = type(layer).__module__
    for public, inside in (("torch.nn", "torch.nn.modules"), ("steadynorm", "steadynorm.nn")):
        if home.startswith(inside):
            home = public
    return f"{home}.{type(layer).__qualname__}"
