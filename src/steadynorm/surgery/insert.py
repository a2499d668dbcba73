"""insert_: batch normalization between each linear layer or convolution and what follows it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import nn

from ..errors import ModelError
from ..nn import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .changes import Change, Changes, kind
from .flow import Flow, flows
from .observe import Passage, observe, run
from .replace import FilterFn, all_or_nothing, check_model, check_optimizer, keep_in_step_, replace_child_
from .strip import LINEAR, width_of

NORMS = ("BatchNorm", "GroupNorm", "LayerNorm", "InstanceNorm", "RMSNorm", "LocalResponseNorm")
ATTENTION = {"matmul", "bmm", "baddbmm", "einsum", "softmax", "scaled_dot_product_attention", "transpose", "permute"}


class _Insertion(NamedTuple):
    """A layer and what comes in its place; `bias` is the one that it loses."""

    name: str
    linear: nn.Module
    pair: nn.Sequential
    bias: nn.Parameter | None


def insert_(
    model: nn.Module,
    example_inputs: Any,
    *,
    filter_fn: FilterFn | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> Changes:
    """Puts batch normalization after each linear layer and convolution, before the activation that follows.

    The layer becomes an nn.Sequential of itself, as `layer`, and a new BatchNorm1d, 2d or 3d, as `norm`: where the
    state dict had `features.0.weight` it has `features.0.layer.weight` and `features.0.norm.weight`. The layer's bias,
    which the mean takes away again, is dropped. The function is another: train it.

    Kept, with the reason: the last layers, from which nothing leads to another linear layer or convolution;
    what a normalization follows already, or whose output attention or several others take; projections inside
    recurrent and attention layers; layers that are called more than once, or have a forward of their own; a linear
    layer of more than two dimensions, (N, *, C), whose channels are not the second; weights that are parametrized.

    Args:
        model: one that torch.fx can trace; not wrapped, not compiled and not scripted.
        example_inputs: a tensor, or a tuple of the model's arguments, with which it runs in eval mode before and after.
        filter_fn: filter_fn(layer, name) says whether a linear layer or convolution is meant; by default all are.
        optimizer: of the model's parameters, which loses the biases and gets the new weights and biases, in the group
            of the layer's weight. Without it, it keeps the biases, which get no gradient, and does not know the new
            ones: build it anew, or pass it.

    Returns:
        What changed and what was kept, with reasons; printable.

    Raises:
        InvalidArgumentError (a ValueError): an optimizer of other parameters.
        ModelError (a ValueError): nowhere to put one, a wrapped model, one that torch.fx cannot trace, does not take
            the example, or fails with the new layers. The model is as before.

    Example::

        print(sn.insert_(model, torch.randn(2, 3, 32, 32)))

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, sec. 3.2.
    """
    who = "insert_"
    check_model(who, model)
    graphs = flows(who, model)
    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, LINEAR)}
    passages = observe(who, model, example_inputs, names)
    planned, kept = [], []
    for layer, name in names.items():
        meant = filter_fn is None or filter_fn(layer, name)
        reason = _unsuited(layer, graphs, passages[layer]) if meant else "filter_fn"
        if reason is None:
            planned.append(_insertion(name, layer, passages[layer][0]))
        else:
            kept.append(Change(name, kind(layer), kind(layer), reason))
    if not planned:
        raise ModelError(f"{who}: expected a model with a place for batch normalization, got none. {Changes([], kept)}")
    added = [(p, plan.linear.get_parameter("weight")) for plan in planned for p in plan.pair.norm.parameters()]
    check_optimizer(who, optimizer, [weight for _, weight in added])
    with all_or_nothing(model, optimizer):
        for plan in planned:
            replace_child_(model, plan.linear, plan.pair)
            plan.linear.register_parameter("bias", None)
        keep_in_step_(optimizer, model, [plan.bias for plan in planned if plan.bias is not None], added)
        run(who, model, example_inputs)
    return Changes([_told(plan) for plan in planned], kept)


def _insertion(name: str, layer: nn.Module, passage: Passage) -> _Insertion:
    weight = layer.get_parameter("weight")
    norm = (BatchNorm1d, BatchNorm1d, BatchNorm2d, BatchNorm3d)[len(passage.output) - 2]
    pair = nn.Sequential(OrderedDict(layer=layer, norm=norm(width_of(layer), device=weight.device, dtype=weight.dtype)))
    pair.train(layer.training)
    return _Insertion(name, layer, pair, layer._parameters["bias"])


def _told(plan: _Insertion) -> Change:
    dropped = "" if plan.bias is None else "; its bias is dropped"
    what = f"torch.nn.Sequential(layer={kind(plan.linear)}, norm={kind(plan.pair.norm)})"  # type: ignore[arg-type]
    return Change(plan.name, kind(plan.linear), what, f"the function is another{dropped}")


def _unsuited(layer: nn.Module, graphs: list[Flow], seen: list[Passage]) -> str | None:
    """Why nothing is inserted after a layer; None if it is."""
    if type(layer) not in LINEAR or "forward" in layer.__dict__:
        return "it has a forward or a parametrization of its own, or is part of another layer"
    if layer._parameters.get("weight") is None or set(layer._parameters) != {"weight", "bias"}:
        return "its weight is no parameter"
    if not seen:
        return "the example does not reach it, or another layer takes its weight"
    if isinstance(layer, nn.Linear) and len(seen[0].output) != 2:
        return f"its output {tuple(seen[0].output)} has its channels last, not second"
    if len(seen[0].output) != layer.get_parameter("weight").dim():
        return f"its output {tuple(seen[0].output)} has no batch dimension"
    return next((reason for flow in graphs if (reason := _unsafe(flow, layer)) is not None), None)


def _unsafe(flow: Flow, layer: nn.Module) -> str | None:
    calls = flow.calls.get(layer, [])
    if len(calls) > 1:
        return f"it is called {len(calls)} times: one normalization would mix what it makes"
    for call in calls:
        if len(call.users) != 1:
            return f"its output is used {len(call.users)} times"
        (user,) = call.users
        after = flow.layer(user)
        if after is not None and any(norm in type(after).__name__ for norm in NORMS):
            return f"followed by {kind(after)}"
        if after is None and _function(user) in ATTENTION | {"batch_norm", "group_norm", "layer_norm", "instance_norm"}:
            return f"followed by {_function(user)}"
        if not _leads_to_another(flow, call):
            return "the last layer"
    return None


def _function(node: torch.fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _leads_to_another(flow: Flow, start: torch.fx.Node) -> bool:
    """Whether another layer with weights to multiply by is somewhere after a node."""
    waiting, seen = list(start.users), set()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        after = flow.layer(node)
        if isinstance(after, (*LINEAR, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.Bilinear)):
            return True
        if after is None and _function(node) in ("linear", "conv1d", "conv2d", "conv3d"):
            return True
        waiting += node.users
    return False
