"""A torch.fx tracer for copies of models: it keeps layers whole, and notes what a graph does not show."""

from __future__ import annotations

import builtins
import gc
import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..nn.layer import Layer

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Tracer(torch.fx.Tracer):
    """Traces one forward of a model that may be thrown away.

    Attributes:
        stored: nodes whose values the model's code, or a hook, keeps or sees beside the graph.
        read: names of the parameters and buffers that the model's code takes from a layer without calling it.
        asked: whether the model's code asked isinstance(x, torch.Tensor) of a value in the graph.
    """

    def __init__(self, model: nn.Module, tensors: bool) -> None:
        super().__init__()
        self.stored: set[torch.fx.Node] = set()
        self.read: set[str] = set()
        self.asked = False
        self._model, self._tensors = model, tensors
        self._proxies: list[weakref.ref[torch.fx.Proxy]] = []
        self._owners: dict[int, list[str]] = {}
        for find in (model.named_parameters, model.named_buffers):
            for name, value in find(remove_duplicate=False):
                self._owners.setdefault(id(value), []).append(name)
        self._hooked = {module for module in model.modules() if has_hooks(module)}

    def run(self, fixed: dict[str, Any]) -> torch.fx.Graph:
        """The graph with some of the arguments fixed; hooks are not called."""
        if "forward" in self._model.__dict__:
            raise TypeError("its forward is set on the object, where torch.fx does not look")
        for module in self._hooked:
            for name in HOOKS:
                module.__dict__[name].clear()
        with _asking(self._model, self._is):
            graph = self.trace(self._model, fixed or None)
        self._note_survivors()
        return graph

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, (Layer, nn.modules.batchnorm._BatchNorm))
        return whole or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: torch.fx.Node) -> torch.fx.Proxy:
        new = super().proxy(node)
        self._proxies.append(weakref.ref(new))
        return new

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, torch.fx.Proxy]) -> Any:
        self.read.update(self._owners.get(id(attr_val), ()))
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        output = super().call_module(m, forward, args, kwargs)
        if m in self._hooked and not self.is_leaf_module(m, self.path_of_module(m)):
            seen = tree_leaves((args, kwargs, output))
            self.stored.update(value.node for value in seen if isinstance(value, torch.fx.Proxy))
        return output

    def _is(self, value: Any, kinds: Any) -> bool:
        """isinstance, of which torch.fx knows nothing, as the model's code asks it."""
        known = isinstance(value, kinds)
        if known or not isinstance(value, torch.fx.Proxy) or not issubclass(Tensor, kinds):
            return known
        self.asked = True
        return self._tensors

    def _note_survivors(self) -> None:
        """What is alive after the forward is stored somewhere: on the model, in a list, in a closure."""

        def alive() -> list[torch.fx.Node]:
            found = (one() for one in self._proxies)
            return [one.node for one in found if one is not None and one.node.op == "call_module"]

        if alive():
            gc.collect()  # or is in a cycle, of an exception say
        self.stored.update(alive())


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is called beside the module's forward."""
    return any(module.__dict__.get(name) for name in HOOKS)


@contextmanager
def _asking(model: nn.Module, answer: Callable[[Any, Any], bool]) -> Iterator[None]:
    """Where the classes of the model are written, isinstance is `answer`; so is torch.is_tensor."""
    put: list[tuple[Any, str, Any]] = [(torch.__dict__, "is_tensor", lambda value: answer(value, Tensor))]
    put += [(place, "isinstance", answer) for place in _places(model)]
    before = [(place, name, name in place, place.get(name)) for place, name, _ in put]
    try:
        for place, name, value in put:
            place[name] = value
        yield
    finally:
        for place, name, was, value in before:
            if was:
                place[name] = value
            else:
                del place[name]


def _places(model: nn.Module) -> Iterable[dict[str, Any]]:
    """The global names of the classes' methods, but torch's and those that have an isinstance of their own."""
    classes = {kind for module in model.modules() for kind in type(module).__mro__}
    methods = [inspect.unwrap(value) for kind in classes for value in vars(kind).values() if inspect.isfunction(value)]
    found = {id(method.__globals__): method.__globals__ for method in methods}
    theirs = ("torch", "steadynorm")
    return [
        place
        for place in found.values()
        if str(place.get("__name__")).partition(".")[0] not in theirs and place is not vars(builtins)
        if "isinstance" not in place
    ]
