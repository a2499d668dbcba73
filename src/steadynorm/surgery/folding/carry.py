"""A plan carried out on a copy: layers with new numbers, and nothing, or what remains, where the norms were."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import nn

from .arithmetic import after, before
from .layers import AddThen, epilogue, is_norm, map_of
from .pairs import Fold, Plan
from .weights import read, write_


@dataclass
class Numbers:
    """The layers that took norms in, by name, as copies in float64 on the CPU, rounded when carried over."""

    layers: dict[str, nn.Module] = field(default_factory=dict)

    def write_to(self, model: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Gives a model these numbers, in its layers' dtype or the one given."""
        for name, layer in self.layers.items():
            if not is_norm(layer) or is_norm(model.get_submodule(name)):  # a norm that took one in may be gone since
                write_(model.get_submodule(name), read(layer), dtype)


@torch.no_grad()
def carry_out_(model: nn.Module, plan: Plan) -> Numbers:
    """Folds: `model` has the new modules and numbers; returns the numbers before rounding."""
    numbers = Numbers()
    for fold in plan.folds:
        norm = numbers.layers.get(fold.norm, model.get_submodule(fold.norm))
        affine = map_of(norm)
        for name in fold.targets:
            layer = numbers.layers.setdefault(name, copy.deepcopy(model.get_submodule(name)).cpu().double())
            channels = len(affine.shift) if name in fold.flattened else None
            weights = read(layer, channels)
            write_(layer, after(weights, affine) if fold.after else before(weights, affine))
    for fold in plan.folds:
        _put_(model, model.get_submodule(fold.norm), _rest(model.get_submodule(fold.norm), fold))
    numbers.write_to(model)
    return numbers


def _rest(norm: nn.Module, fold: Fold) -> nn.Module:
    """What stands where a norm was."""
    activation = epilogue(norm)
    rest = nn.Identity() if activation is None else activation
    return (AddThen(rest) if fold.extras else rest).eval()


def _put_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replaces a module under every name it has."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def places(plan: Plan, fold: Fold) -> list[str]:
    """The modules whose outputs show whether a fold is right: where both models must have the same values."""
    outlets = {target: fold.norm for fold in plan.folds if fold.after for target in fold.targets}
    forward = {fold.norm: fold.targets for fold in plan.folds if not fold.after}

    def of(layer: str) -> list[str]:
        if layer in forward:
            return [place for target in forward[layer] for place in of(target)]
        return [outlets.get(layer, layer)]

    return sorted({place for target in fold.targets for place in of(target)})
