"""The model run once on the example: whether its forward goes as it was traced, and what reaches each layer."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .flow import Flow
from .layers import is_known


@dataclass
class Seen:
    """What the run showed, by layer (its first name in the model).

    Attributes:
        dims: the numbers of dimensions of a layer's inputs.
        fed: the layers whose outputs were its inputs, the same tensors and not changed since; "" for anything else.
        outside: who called a layer that no part's graph knows of, such as a forward that cannot be traced.
        strayed: parts whose forward called other layers than their graph has, or in another order.
    """

    dims: dict[str, set[int]] = field(default_factory=dict)
    fed: dict[str, set[str]] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)
    strayed: set[str] = field(default_factory=set)


def watch(model: nn.Module, flow: Flow, run: Callable[[nn.Module], Any]) -> Seen:
    """Runs a model that may be thrown away; layers have one name, their first."""
    names = {module: name for name, module in model.named_modules()}
    seen, stack = Seen(), []
    outputs: dict[int, tuple[weakref.ref[torch.Tensor], int, str]] = {}
    expected = {part.name: [names[layer] for layer in _layers(model, part)] for part in flow.parts}
    whole = {names[model.get_submodule(target)] for part in flow.parts for target in part.opaque}

    def begin(name: str) -> Callable[..., None]:
        return lambda *_: stack.append((name, []))

    def end(name: str) -> Callable[..., None]:
        def leave(*_: object) -> None:
            _, called = stack.pop()
            if name in expected and called != expected[name]:
                seen.strayed.add(name)

        return leave

    def call(name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given = next((value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)), None)
            seen.dims.setdefault(name, set()).add(-1 if given is None else given.dim())
            tensor, version, feeder = outputs.get(id(given), (None, 0, ""))
            same = given is not None and tensor is not None and tensor() is given and given._version == version
            seen.fed.setdefault(name, set()).add(feeder if same else "")
            if stack and stack[-1][0] in expected:
                stack[-1][1].append(name)
            else:
                seen.outside[name] = stack[-1][0] if stack else ""

        return note

    def give(name: str) -> Callable[..., None]:
        def note(_: nn.Module, __: object, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                outputs[id(output)] = weakref.ref(output), output._version, name

        return note

    for name, module in model.named_modules():
        if name in expected or name in whole:
            module.register_forward_pre_hook(begin(name))
            module.register_forward_hook(end(name))
        elif is_known(module):
            module.register_forward_pre_hook(call(name), with_kwargs=True)
            module.register_forward_hook(give(name))
    run(model)
    return seen


def _layers(model: nn.Module, part: Any) -> list[nn.Module]:
    called = [model.get_submodule(target) for target, _ in part.calls()]
    return [module for module in called if is_known(module)]
