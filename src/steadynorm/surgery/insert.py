"""insert_: batch normalization between each linear layer or convolution and what follows it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

import torch
import torch.fx
from torch import nn

from ..errors import InvalidArgumentError, ModelError
from ..nn import BatchNorm1d, BatchNorm2d, BatchNorm3d
from ..nn.layer import Layer
from .changes import Change, Changes, kind
from .example import Example, example_of
from .flow import Flow, flows
from .observe import Passage, observe
from .replace import FilterFn, all_or_nothing, check_model, check_optimizer, keep_in_step_, replace_child_
from .strip import LINEAR, width_of

NORMS = ("BatchNorm", "GroupNorm", "LayerNorm", "InstanceNorm", "RMSNorm", "LocalResponseNorm")
SKIPPED = (nn.Identity, nn.modules.dropout._DropoutNd)
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
    recurrent and attention layers; layers that are called more than once, that torch.fx does not see called, whose
    weight the model's code takes, or with a forward of their own; a linear layer of more than two dimensions,
    (N, *, C), whose channels are not the second; weights that are parametrized; the model itself.

    Args:
        model: one that torch.fx can trace; not wrapped, not compiled and not scripted.
        example_inputs: what the model is called with: a tensor, a tuple or list of arguments, or a dict of keyword
            arguments. Copies run on it in eval mode before and after.
        filter_fn: filter_fn(layer, name) says whether a linear layer or convolution is meant; by default all are.
        optimizer: of the model's parameters, which loses the biases and gets the new weights and biases, in the group
            of the layer's weight. Without it, it keeps the biases, which get no gradient, and does not know the new
            ones: build it anew, or pass it.

    Returns:
        What changed and what was kept, with reasons; printable.

    Raises:
        InvalidArgumentError (a ValueError): an optimizer of other parameters, or an example that the model does not
            take.
        ModelError (a ValueError): nowhere to put one, a wrapped model, one that torch.fx cannot trace or copy.deepcopy
            copy, that fails with the new layers, or calls them past its tree. The model is as before.

    Example::

        print(sn.insert_(model, torch.randn(2, 3, 32, 32)))

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, sec. 3.2.
    """
    who = "insert_"
    check_model(who, model)
    example = example_of(who, example_inputs)
    graphs = flows(who, model)
    names = {layer: name for name, layer in model.named_modules() if isinstance(layer, LINEAR)}
    passages = observe(who, model, example, names)
    planned, kept = [], []
    for layer, name in names.items():
        meant = filter_fn is None or filter_fn(layer, name)
        reason = _unsuited(layer, graphs, passages[layer]) if meant else "filter_fn"
        if meant and layer is model:
            reason = "it is the model itself, in which there is no place beside it; put it in an nn.Sequential"
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
        _check_reached(who, model, example, planned)
    return Changes([_told(plan) for plan in planned], kept)


@torch.inference_mode(False)
def _insertion(name: str, layer: nn.Module, passage: Passage) -> _Insertion:
    weight = layer.get_parameter("weight")
    norm = (BatchNorm1d, BatchNorm1d, BatchNorm2d, BatchNorm3d)[len(passage.output) - 2]
    pair = nn.Sequential(OrderedDict(layer=layer, norm=norm(width_of(layer), device=weight.device, dtype=weight.dtype)))
    pair.train(layer.training)
    return _Insertion(name, layer, pair, layer._parameters["bias"])


def _check_reached(who: str, model: nn.Module, example: Example, planned: list[_Insertion]) -> None:
    """Raises ModelError unless the model runs, and calls every new layer."""
    try:
        passages = observe(who, model, example, [plan.pair.norm for plan in planned])  # type: ignore[misc]
    except InvalidArgumentError as error:
        raise ModelError(
            f"{who}: expected a model that runs with the new layers; it raised {type(error.__cause__).__name__}: "
            f"{error.__cause__}. Leave out by filter_fn the layers of which its code takes more than the call."
        ) from error
    if missed := [plan.name for plan in planned if not passages[plan.pair.norm]]:  # type: ignore[index]
        raise ModelError(
            f"{who}: expected a model that calls its layers where they are, got one that calls {', '.join(missed)} "
            "from elsewhere, such as a list. Leave them out by filter_fn."
        )


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
    if not any(layer in flow.calls for flow in graphs):
        return "torch.fx does not see it called"
    if len(seen) > 1:
        return f"it is called {len(seen)} times: one normalization would mix what it makes"
    if any(layer in flow.read for flow in graphs):
        return "the model's code takes its weight or bias itself"
    if any(layer in flow.inside for flow in graphs):
        return "it is in a layer that torch.fx does not look into too"
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
        if call in flow.stored:
            return "its output is kept, or seen by a hook, beside what follows"
        user, after = _next(flow, call)
        if after is not None and _is_norm(after):
            return f"followed by {kind(after)}"
        if after is None and _function(user) in ATTENTION | {"batch_norm", "group_norm", "layer_norm", "instance_norm"}:
            return f"followed by {_function(user)}"
        if not _leads_to_another(flow, call):
            return "the last layer"
    return None


def _next(flow: Flow, call: torch.fx.Node) -> tuple[torch.fx.Node, nn.Module | None]:
    """Who takes a call's output, and the layer that it calls, past what changes no value or drops some."""
    user = next(iter(call.users))
    while isinstance(after := flow.layer(user), SKIPPED) and len(user.users) == 1:
        user = next(iter(user.users))
    return user, after


def _is_norm(layer: nn.Module) -> bool:
    ours = isinstance(layer, (nn.modules.batchnorm._NormBase, Layer))
    return ours or any(norm in type(layer).__name__ for norm in NORMS)


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
