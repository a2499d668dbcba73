"""fuse_activations_: the activation after a batch normalization goes into it."""

from __future__ import annotations

import torch
import torch.fx
from torch import nn

from ..nn.convertible import dimensions
from ..nn.layer import Layer
from ..walk import batch_norms
from .changes import Change, Changes, kept_frozen, kind
from .flow import Flow, flows
from .replace import FilterFn, all_or_nothing, become_, carry, check_model, original_of
from .sources import activation, epilogue, is_frozen, obstacle
from .targets import Source, build
from .tracing import has_hooks


def fuse_activations_(model: nn.Module, *, filter_fn: FilterFn | None = None) -> Changes:
    """Lets each batch normalization layer apply the activation module that follows it; torch's layers become ours.

    The output is written once instead of twice, and less is kept for the backward pass. The activation module becomes
    Identity; names and state dicts stay. Safe means: torch.fx sees, in train and in eval mode, with the forward's
    defaults and with other arguments in their place, that the layer is called once, that nothing else takes its output
    and no code keeps it, that the module is called nowhere else, and neither has hooks. Everything else is kept, with
    the reason. An activation called as a function is in the model's own code, which stays. A copy is traced, so that
    the model's own counters and lists stay; its forward must not depend on more than its arguments and the mode.

    Args:
        model: one that torch.fx can trace; not wrapped, not compiled and not scripted.
        filter_fn: filter_fn(layer, name) says whether a batch normalization layer is meant; by default all are.

    Returns:
        What changed, layers and activations, and which batch normalization layers were kept, with reasons; printable.

    Raises:
        InvalidArgumentError (a ValueError): no batch normalization layer.
        ModelError (a ValueError): a wrapped model, or one that torch.fx cannot trace or copy.deepcopy copy. The model
            is as before.

    Example::

        print(sn.fuse_activations_(model))
    """
    who = "fuse_activations_"
    check_model(who, model)
    names = {module: name for name, module in model.named_modules()}
    made, turned = [], []
    kept = [kept_frozen(name, module) for module, name in names.items() if is_frozen(module)]
    layers = {name: layer for layer, name in names.items() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}
    if not layers and not kept:
        batch_norms(who, model)
    graphs = flows(who, model)
    for name, layer in layers.items():
        meant = filter_fn is None or filter_fn(layer, name)
        found = _follower(graphs, layer, names) if meant else "filter_fn"
        reason = _own(layer) or (found if isinstance(found, str) else None)
        if reason is not None or isinstance(found, str):
            kept.append(Change(name, kind(layer), kind(layer), reason or ""))
            continue
        new, identity = _applying(layer, name, found), nn.Identity()
        carry(found, identity)
        turned += [(layer, new), (found, identity)]
        made += [
            Change(name, kind(layer), kind(new), f"applies {names[found]}"),
            Change(names[found], kind(found), kind(identity), f"applied by {name}"),
        ]
    with all_or_nothing(model):
        for layer, new in turned:
            become_(layer, new)
    return Changes(made, kept)


def _applying(layer: nn.Module, name: str, follower: nn.Module) -> nn.Module:
    """The layer with the activation, of our class."""
    source = Source(layer, name, dimensions(layer))  # type: ignore[arg-type]
    new = original_of(layer) if isinstance(layer, Layer) else build(source, "steadynorm", {})
    new.__dict__.update(activation(follower) or {})
    return new


def _own(layer: nn.Module) -> str | None:
    """Why a layer cannot apply an activation, whatever follows it."""
    if (reason := obstacle(layer)) is not None:
        return reason
    if epilogue(layer):
        return "it applies an activation already"
    if not isinstance(layer, Layer) and dimensions(layer) is None:
        return "synchronized by torch; convert it first, to 'sync'"
    return "it has hooks, which see its output" if has_hooks(layer) else None


def _follower(graphs: list[Flow], layer: nn.Module, names: dict[nn.Module, str]) -> nn.Module | str:
    """The activation module that follows in every graph; or why there is none that may go into the layer."""
    found: set[nn.Module] = set()
    for flow in graphs:
        calls = flow.calls.get(layer, [])
        if len(calls) > 1:
            return f"it is called {len(calls)} times"
        for call in calls:
            users = list(call.users)
            if len(users) != 1:
                return f"its output is used {len(users)} times"
            if call in flow.stored:
                return "its output is kept, or seen by a hook, beside what follows"
            follower = flow.layer(users[0])
            if follower is None or activation(follower) is None:
                return f"followed by {_described(users[0], follower)}"
            found.add(follower)
    if len(found) != 1:
        return "followed by different activations in train and eval mode" if found else "it is not called"
    follower = found.pop()
    if any({layer, follower} & flow.inside for flow in graphs):
        return f"it, or its activation {names[follower]}, is in a layer that torch.fx does not look into"
    if isinstance(follower, nn.Sigmoid) and any("mask" in flow.extras(layer) for flow in graphs):
        return "masked elements would be 0 behind the sigmoid too"
    if any(len(flow.calls.get(follower, ())) != len(flow.calls.get(layer, ())) for flow in graphs):
        return f"its activation {names[follower]} is called elsewhere too"
    return f"its activation {names[follower]} has hooks" if has_hooks(follower) else follower


def _described(node: torch.fx.Node, layer: nn.Module | None) -> str:
    if layer is not None:
        return kind(layer)
    if node.op == "output":
        return "nothing, it is an output of the model"
    return f"{getattr(node.target, '__name__', node.target)}, called as a function"
