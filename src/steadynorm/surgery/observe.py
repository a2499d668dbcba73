"""What passes through layers when the model runs once on an example."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import ModelError


class Passage(NamedTuple):
    """The shapes of one call of a layer."""

    input: torch.Size
    output: torch.Size


@torch.no_grad()
def observe(
    who: str, model: nn.Module, example_inputs: Any, layers: Iterable[nn.Module]
) -> dict[nn.Module, list[Passage]]:
    """Every call of the layers in one forward in eval mode, of which the model keeps no trace.

    Raises:
        ModelError (a ValueError): the model does not take the example.
    """
    seen: dict[nn.Module, list[Passage]] = {layer: [] for layer in layers}

    def note(layer: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if given and isinstance(given[0], Tensor) and isinstance(output, Tensor):
            seen[layer].append(Passage(given[0].shape, output.shape))

    handles = [layer.register_forward_hook(note) for layer in seen]
    try:
        run(who, model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@torch.no_grad()
def run(who: str, model: nn.Module, example_inputs: Any) -> Any:
    """The output in eval mode for a tensor or a tuple of arguments, which are not touched."""
    given = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    given = tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, given)
    try:
        with mode(model, training=False):
            return model(*given)
    except Exception as error:
        raise ModelError(
            f"{who}: expected example_inputs that the model takes, a tensor or a tuple of arguments; it raised "
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
