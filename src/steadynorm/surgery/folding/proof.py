"""The proof: the original and the folded model run on the same example, compared where norms were and at the end.

They are compared twice. In float64, with weights that are not rounded, they differ by some 1e-13 if the algebra is
right, however deep the model; any mistake shows. In the model's own dtype, rounding of the new weights shows too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...errors import FoldError
from ..example import Example

EXACT = 1e-9
"""Largest error in float64, relative to the largest value: thousands of times its rounding, and a thousandth of a
float32's."""
NEGLIGIBLE = 1e-6
"""What a channel's largest value is at least taken for, relative to the largest of all channels: float64's rounding of
values that cancel stays far below `EXACT` of that."""
Call = Callable[[nn.Module], Any]


def arguments(model: nn.Module, example: Example) -> dict[str, dict[str, Any]]:
    """`Example.fixed` of every module inside, with what the model gives it; runs a model that may be thrown away.

    Of a module that is called several times, what is the same each time.
    """
    found: dict[str, dict[str, Any]] = {}

    def note(name: str) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = Example(args, kwargs).fixed(module)
            before = found.get(name, given)
            found[name] = {key: value for key, value in given.items() if key in before and _same(before[key], value)}

        return look

    for name, module in model.named_modules():
        if name and any(True for _ in module.children()):
            module.register_forward_pre_hook(note(name), with_kwargs=True)
    example.run(model)
    return found


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and isinstance(one, (int, float, str)) and one == other)


class Errors(NamedTuple):
    """Largest absolute difference over the largest absolute value, by place, and of the outputs."""

    at: dict[str, float]
    overall: float

    @property
    def largest(self) -> float:
        return max(self.overall, *self.at.values(), 0.0)


def twin(model: nn.Module) -> nn.Module:
    """A copy that may be run and thrown away; it shares the parameters."""
    return copy.deepcopy(model, {id(value): value for value in model.parameters()})


class Record(NamedTuple):
    """The outputs of the modules at each place, call by call, and the floating-point outputs of the model."""

    there: dict[str, list[Tensor]]
    outputs: list[Tensor]


def record(model: nn.Module, example: Example, places: Iterable[str]) -> Record:
    """Runs a model that may be thrown away."""
    there: dict[str, list[Tensor]] = {name: [] for name in sorted(set(places))}

    def keep(values: list[Tensor]) -> Callable[..., None]:
        return lambda _, __, output: values.append(output.clone())

    for name, values in there.items():
        model.get_submodule(name).register_forward_hook(keep(values))
    return Record(there, [value for value in tree_leaves(example.run(model)) if _is_floating(value)])


def compare(who: str, theirs: Record, folded: nn.Module, example: Example, *, by_channel: bool = False) -> Errors:
    """Runs a folded model that may be thrown away, and compares with what the original gave.

    Args:
        who: for errors.
        theirs: what the original gave.
        folded: the other model.
        example: what it is called with.
        by_channel: whether errors where norms were are relative to the largest value of their channel, so that a
            large channel hides nothing; else to the largest of all, as rounding is.

    Raises:
        FoldError: values that are not finite, no values at all, or the folded model cannot be run.
    """
    if not theirs.outputs:
        raise FoldError(
            f"{who}: expected a model that returns floating-point tensors, alone or in tuples, lists or dicts, got "
            "none to compare. Wrap the model in a module that returns them."
        )
    for name, values in ({"the output": theirs.outputs} | theirs.there).items():
        if any(value.numel() == 0 for value in values):
            raise FoldError(
                f"{who}: expected values to compare, got none at {name} of the original model: a tensor without "
                "elements, which can prove nothing. Give larger example_inputs."
            )
        if not all(bool(value.isfinite().all()) for value in values):
            raise FoldError(
                f"{who}: expected finite values on the example, got inf or nan at {name} of the original model, which "
                "can prove nothing. Give other example_inputs, or mend the model."
            )
    try:
        ours = record(folded, example, theirs.there)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise FoldError(
            f"{who}: the folded model cannot be run ({type(error).__name__}: {reason:.300}). Its forward may use what "
            "a norm has besides its call; the original is as before."
        ) from error
    errors = {name: _largest_error(values, ours.there[name], by_channel) for name, values in theirs.there.items()}
    return Errors(errors, _largest_error(theirs.outputs, ours.outputs))


def _largest_error(expected: list[Tensor], actual: list[Tensor], by_channel: bool = False) -> float:
    """inf where they do not even have the same shapes, or what should be finite is not."""
    if [value.shape for value in expected] != [value.shape for value in actual]:
        return float("inf")
    worst = 0.0
    for one, other in zip(expected, actual, strict=True):
        difference, size = (one.double() - other.double()).abs(), one.double().abs()
        scale = size.max()
        if by_channel and one.dim() > 1:
            others = [dim for dim in range(one.dim()) if dim != 1]
            difference, scale = difference.amax(others), size.amax(others).clamp(min=float(scale) * NEGLIGIBLE)
        errors = torch.where(difference == 0, 0.0, difference / scale)
        worst = max(worst, float(errors.nan_to_num(nan=float("inf"), posinf=float("inf")).max()))
    return worst


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
