"""What passes through layers when a copy of the model runs once on an example."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError, ModelError
from .example import Example


class Passage(NamedTuple):
    """The shapes of one call of a layer."""

    input: torch.Size
    output: torch.Size


def observe(
    who: str, model: nn.Module, example: Example, layers: Iterable[nn.Module]
) -> dict[nn.Module, list[Passage]]:
    """Every call of the layers in one forward of a copy in eval mode; the copy's hooks run.

    Raises:
        InvalidArgumentError (a ValueError): the model does not take the example.
        ModelError (a ValueError): it cannot be copied.
    """
    copied = duplicate(who, model)
    twins = dict(zip(model.modules(), copied.modules(), strict=True))
    seen: dict[nn.Module, list[Passage]] = {layer: [] for layer in layers}

    def note(passages: list[Passage]) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if given is not None and isinstance(output, Tensor):
                passages.append(Passage(given.shape, output.shape))

        return hook

    for layer, passages in seen.items():
        twins[layer].register_forward_hook(note(passages), with_kwargs=True)
    try:
        with mode(copied, training=False):
            example.run(copied)
    except Exception as error:
        raise InvalidArgumentError(
            f"{who}: expected example_inputs that the model takes, a tensor, a tuple of arguments or a dict of "
            f"keyword arguments; it raised {type(error).__name__}: {error}"
        ) from error
    return seen


def duplicate(who: str, model: nn.Module, shared: Iterable[Tensor] = ()) -> nn.Module:
    """A copy that may be traced or run, and thrown away; it shares some tensors.

    Raises:
        ModelError (a ValueError): copy.deepcopy cannot copy the model.
    """
    try:
        return copy.deepcopy(model, {id(value): value for value in shared})
    except Exception as error:
        raise ModelError(
            f"{who}: expected a model that copy.deepcopy can copy, got {type(model).__name__}, which raised "
            f"{type(error).__name__}: {error}"
        ) from error


@contextmanager
def mode(model: nn.Module, training: bool) -> Iterator[None]:
    """All modules in one mode; each in its own again afterwards."""
    before = [(module, module.training) for module in model.modules()]
    for module, _ in before:
        module.training = training
    try:
        yield
    finally:
        for module, was in before:
            module.training = was
