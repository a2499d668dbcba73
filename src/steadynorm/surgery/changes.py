"""What a rewriting verb did, and what it left alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from ..nn import FrozenBatchNorm


class Change(NamedTuple):
    """One layer: its name in the model ("" for the model itself), what it was, what it is now, and why or at what cost.

    `before` and `after` are the same for a layer that was kept, or whose settings changed.
    """

    name: str
    before: str
    after: str
    reason: str = ""

    def __str__(self) -> str:
        return self._told(f"{self.before} changed" if self.before == self.after else f"{self.before} → {self.after}")

    def _told(self, what: str) -> str:
        return f"{self.name or '(the model)'}: {what}{f' ({self.reason})' if self.reason else ''}"


class _Kept(Change):
    """A layer that was kept."""

    __slots__ = ()

    def __str__(self) -> str:
        return self._told(f"{self.before} kept")


class Changes(list[Change]):
    """What changed, in the model's order; printed one line a layer.

    Attributes:
        kept: layers that might have been meant and are as before, each with the reason.
    """

    def __init__(self, made: Iterable[Change] = (), kept: Iterable[Change] = ()) -> None:
        super().__init__(made)
        self.kept: list[Change] = [_Kept(*change) for change in kept]

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


def kept_frozen(name: str, layer: nn.Module) -> Change:
    """A layer that stays because it is frozen, by us or by another library."""
    why = "frozen; unfreeze_ it first" if isinstance(layer, FrozenBatchNorm) else "frozen by its library"
    return Change(name, kind(layer), kind(layer), why)
