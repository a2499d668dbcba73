"""Which layer feeds which: a model's graphs by torch.fx, in train and in eval mode, with arguments left out and given.

torch.fx sees one path through a forward. What a path may depend on is varied, and what holds in every graph holds.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Any

import torch.fx
from torch import nn

from ..errors import ModelError
from .observe import duplicate, mode
from .tracing import Tracer


class Flow:
    """The calls of layers in one forward.

    Attributes:
        nodes: all nodes, in order.
        calls: the nodes that call a layer, by the layer.
        inside: modules in a layer that is called whole, so that nobody sees whether it calls them.
        stored: nodes whose values the model's code or a hook keeps or sees beside the graph.
        read: names of the parameters and buffers that the model's code takes from a layer itself.
    """

    def __init__(self, model: nn.Module, graph: torch.fx.Graph, tracer: Tracer | None = None) -> None:
        self._model = model
        self.nodes = list(graph.nodes)
        self.calls: dict[nn.Module, list[torch.fx.Node]] = {}
        for node in self.nodes:
            if (layer := self.layer(node)) is not None:
                self.calls.setdefault(layer, []).append(node)
        self.inside = {module for layer in self.calls for module in layer.modules() if module is not layer}
        self.stored = set() if tracer is None else tracer.stored
        self.read: dict[nn.Module, set[str]] = {}
        for name in () if tracer is None else tracer.read:
            owner, _, attribute = name.rpartition(".")
            self.read.setdefault(model.get_submodule(owner), set()).add(attribute)

    def layer(self, node: Any) -> nn.Module | None:
        """The layer that a node calls; None for any other node."""
        if isinstance(node, torch.fx.Node) and node.op == "call_module":
            return self._model.get_submodule(str(node.target))
        return None

    def extras(self, layer: nn.Module) -> set[str]:
        """What a layer is called with beside its input."""
        calls = self.calls.get(layer, ())
        named = {name for call in calls for name, value in call.kwargs.items() if value is not None}
        return (named - {"input"}) | {"more arguments" for call in calls if len(call.args) > 1}


def flows(who: str, model: nn.Module) -> list[Flow]:
    """The model's graphs: train and eval mode, arguments with a default left out and given, one and all; traced on a
    copy. What the model's code asks `isinstance(x, torch.Tensor)` of counts as a tensor, and, where that can be
    traced too, as none.

    Raises:
        ModelError (a ValueError): torch.fx cannot trace the model in every one of these ways.
    """
    ways = [(training, fixed) for training in (True, False) for fixed in _variants(model)]
    return [flow for training, fixed in ways for flow in _both(who, model, training, fixed)]


def _variants(model: nn.Module) -> list[dict[str, Any]]:
    """Values at which arguments of the forward are fixed; what is not fixed is given."""
    parameters = inspect.signature(type(model).forward).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}

    def given(names: set[str]) -> dict[str, Any]:
        left = {name: value for name, value in defaults.items() if name not in names}
        return left | {name: not defaults[name] for name in names if isinstance(defaults[name], bool)}

    each = [given({name}) for name in defaults]
    return [defaults, *each, *([given(set(defaults))] if len(defaults) > 1 else [])]


def _both(who: str, model: nn.Module, training: bool, fixed: dict[str, Any]) -> list[Flow]:
    flow, asked = _flow(who, model, training, fixed, tensors=True)
    if not asked:
        return [flow]
    try:
        return [flow, _flow(who, model, training, fixed, tensors=False)[0]]
    except ModelError:  # as where the forward refuses what is no tensor
        return [flow]


def _flow(who: str, model: nn.Module, training: bool, fixed: dict[str, Any], tensors: bool) -> tuple[Flow, bool]:
    """The flow, and whether it depends on what `tensors` says."""
    copied = duplicate(who, model, shared=model.parameters())
    tracer = Tracer(copied, tensors)
    if not model._modules and tracer.is_leaf_module(model, ""):
        return Flow(model, torch.fx.Graph()), False  # one layer, which nothing feeds
    try:
        with warnings.catch_warnings(), mode(copied, training):
            warnings.simplefilter("ignore")  # they speak of what torch.fx passes in
            graph = tracer.run(fixed)
    except Exception as error:
        given = f" with {', '.join(f'{name}={value!r}' for name, value in fixed.items())}" if fixed else ""
        raise ModelError(
            f"{who}: expected a model whose data flow torch.fx can trace, got {type(model).__name__}{given}: "
            f"{type(error).__name__}: {error}. Pass the part of it that has no control flow on values, such as "
            "model.backbone."
        ) from error
    return Flow(model, graph, tracer), tracer.asked
