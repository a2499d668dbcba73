"""Which layer feeds which: a model's graph by torch.fx, in train and in eval mode."""

from __future__ import annotations

from typing import Any

import torch.fx
from torch import nn

from ..errors import ModelError
from ..nn.layer import Layer
from .observe import mode


class _Tracer(torch.fx.Tracer):
    """Keeps torch's layers and ours whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Layer) or super().is_leaf_module(m, module_qualified_name)


class Flow:
    """The calls of layers in one forward.

    Attributes:
        calls: the nodes that call a layer, by the layer.
        nodes: all nodes, in order.
    """

    def __init__(self, model: nn.Module, graph: torch.fx.Graph) -> None:
        self._model = model
        self.nodes = list(graph.nodes)
        self.calls: dict[nn.Module, list[torch.fx.Node]] = {}
        for node in self.nodes:
            if (layer := self.layer(node)) is not None:
                self.calls.setdefault(layer, []).append(node)

    def layer(self, node: Any) -> nn.Module | None:
        """The layer that a node calls; None for any other node."""
        if isinstance(node, torch.fx.Node) and node.op == "call_module":
            return self._model.get_submodule(str(node.target))
        return None


def flows(who: str, model: nn.Module) -> list[Flow]:
    """The model's graph in train mode and in eval mode.

    Raises:
        ModelError (a ValueError): torch.fx cannot trace the model.
    """
    return [_flow(who, model, training) for training in (True, False)]


def _flow(who: str, model: nn.Module, training: bool) -> Flow:
    tracer = _Tracer()
    if not model._modules and tracer.is_leaf_module(model, ""):
        return Flow(model, torch.fx.Graph())  # one layer, which nothing feeds
    try:
        with mode(model, training):
            return Flow(model, tracer.trace(model))
    except Exception as error:
        raise ModelError(
            f"{who}: expected a model whose data flow torch.fx can trace, got {type(model).__name__}: "
            f"{type(error).__name__}: {error}. Pass the part of it that has no control flow on values, such as "
            "model.backbone."
        ) from error
