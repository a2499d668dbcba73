"""What a model is called with, to see what it does or to prove that it does the same."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import InvalidArgumentError


class Example(NamedTuple):
    """What the model is called with."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, model: nn.Module) -> Any:
        """The output, without gradients, with the same random numbers each time; the caller's are left alone."""
        devices = sorted({value.device.index for value in model.parameters() if value.is_cuda})
        with torch.inference_mode(False), torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(0)
            args, kwargs = tree_map(_fresh, (self.args, self.kwargs))
            return model(*args, **kwargs)

    def fixed(self, model: nn.Module) -> dict[str, Any]:
        """Arguments of the forward that are no tensors here: given as something else, or left at their defaults."""
        signature = inspect.signature(model.forward)
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
            return {}
        given = signature.bind(*self.args, **self.kwargs)
        given.apply_defaults()
        return {
            name: value
            for name, value in given.arguments.items()
            if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))
        }

    def widened(self) -> Example:
        """With float64 for every floating-point tensor."""
        return Example(*tree_map(_wide, tuple(self)))


def example_of(who: str, given: Any) -> Example:
    """What the model is called with: a tensor, a tuple or list of arguments, or a dict of keyword arguments.

    Raises:
        InvalidArgumentError (a ValueError): it is none of these.
    """
    if isinstance(given, Tensor):
        return Example((given,), {})
    if isinstance(given, Mapping) and given and all(isinstance(name, str) for name in given):
        return Example((), dict(given))
    if isinstance(given, (tuple, list)) and given:
        return Example(tuple(given), {})
    got = "nothing" if given is None else f"{type(given).__name__} {given!r:.60}"
    raise InvalidArgumentError(
        f"{who}: expected example_inputs, a tensor, a tuple of arguments or a dict of keyword arguments, got {got}. "
        "Give data as the model will see them, such as torch.randn(2, 3, 224, 224)."
    )


def _fresh(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _wide(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
