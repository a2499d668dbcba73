"""convert_: batch normalization layers become layers of another kind."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..errors import InvalidArgumentError, ModelError, SteadynormError
from ..nn.convertible import dimensions
from ..nn.layer import Layer
from ..walk import batch_norms
from .changes import Change, Changes, kept_frozen, kind
from .example import example_of
from .flow import Flow, flows
from .observe import Passage, observe
from .replace import FilterFn, all_or_nothing, become_, check_model
from .sources import STATE, STATISTICS, epilogue, gives_back_activation, is_frozen, is_timms, obstacle
from .strip import strip_
from .targets import FAMILY, SETTINGS, TARGETS, Source, build, groups_of

COSTS = {
    "group": "running statistics and their eval mode are gone; train again",
    "layer": "one group of all channels and positions; running statistics and their eval mode are gone; train again",
    "instance": "running statistics and their eval mode are gone; train again",
}


def convert_(
    model: nn.Module,
    *,
    to: str,
    filter_fn: FilterFn | None = None,
    example_inputs: Any = None,
    optimizer: torch.optim.Optimizer | None = None,
    **settings: Any,
) -> Changes:
    """Makes the batch normalization layers of a model, torch's and steadynorm's, layers of another kind, in place.

    ============== ===================================================================================================
    to             what a layer becomes
    ============== ===================================================================================================
    "torch"        torch.nn.BatchNorm1d, 2d or 3d
    "steadynorm"   steadynorm.BatchNorm1d, 2d or 3d
    "sync"         steadynorm.SyncBatchNorm; setting: process_group
    "ghost"        steadynorm.GhostBatchNorm1d, 2d or 3d; setting: virtual_batch_size, needed
    "renorm"       steadynorm.BatchRenorm1d, 2d or 3d; settings: rmax, dmax
    "frozen"       steadynorm.FrozenBatchNorm, as `freeze_`
    "group"        torch.nn.GroupNorm of at most num_groups groups (a setting, 32) of two channels or more
    "layer"        torch.nn.GroupNorm of one group: layer normalization over channels and positions
    "instance"     torch.nn.InstanceNorm1d, 2d or 3d; needs example_inputs
    "none"         torch.nn.Identity, or the activation that was inside; a linear layer or convolution without a bias
                   directly before it gets the layer's bias, or zeros
    ============== ===================================================================================================

    The layers stay the objects that they are and change their class, so that the model itself may be one, one that is
    shared is changed once, and whatever holds one follows. Parameters, running statistics, hooks, mode, device and
    dtype are the same objects or values; state dicts of the first six are equal. There and back again is the identity.
    Frozen layers are left alone. A layer that another model shares changes there too.

    Args:
        model: not wrapped (DistributedDataParallel, FSDP), not compiled and not scripted.
        to: the kind of layer, from the table.
        filter_fn: filter_fn(layer, name) says whether a layer is meant; by default all are.
        example_inputs: what the model is called with, where the shapes of the layers' inputs decide: a tensor, a tuple
            or list of arguments, or a dict of keyword arguments. A copy runs on it once in eval mode, hooks included.
        optimizer: of the model's parameters. Only "none" removes and adds parameters; without it the optimizer keeps
            the removed ones, which get no gradient, and does not know the added ones.
        settings: of the new layers, from the table.

    Returns:
        What changed and what was kept, with reasons; printable.

    Raises:
        InvalidArgumentError (a ValueError): no batch normalization layer, an unknown `to` or setting, one that is
            missing or out of range, an optimizer of other parameters, or an example that the model does not take.
        ModelError (a ValueError): a wrapped model, or layers that cannot become the new kind, each with the reason:
            methods of its own, an activation or single_value="running" that the new one has not, unknown dimensions,
            an input of which the new one would leave nothing, arguments or state that the model's code uses (which is
            seen where torch.fx can trace the model; "none" needs that). The model is as before.

    Example::

        print(sn.convert_(model, to="ghost", virtual_batch_size=32))

    Reference: Wu & He 2018, arXiv:1803.08494 (groups); Ba et al. 2016, arXiv:1607.06450; Ulyanov et al. 2016,
    arXiv:1607.08022.
    """
    return converted("convert_", model, to, filter_fn, example_inputs, optimizer, settings)


def converted(
    who: str,
    model: nn.Module,
    to: str,
    filter_fn: FilterFn | None,
    example_inputs: Any,
    optimizer: torch.optim.Optimizer | None,
    settings: dict[str, Any],
) -> Changes:
    """What `convert_` does, in the name of any verb: builds every new layer first, then all become what they are."""
    check_model(who, model)
    _check_settings(who, to, settings)
    sources, kept = _sources(who, model, to, filter_fn, settings)
    sources, passages = _measured(who, model, sources, example_inputs)
    reasons = [(source, _loss(source, to, settings, passages.get(source.layer))) for source in sources]
    refuse(who, reasons)
    refuse(who, list(zip(sources, _misfits(who, model, sources, to), strict=True)))
    new = [_built(who, source, to, settings) for source in sources]
    made = [_change(source.layer, layer, source.name, to, settings) for source, layer in zip(sources, new, strict=True)]
    if to == "none":
        return Changes(strip_(who, model, sources, new, optimizer), kept)
    with all_or_nothing(model):
        for source, layer in zip(sources, new, strict=True):
            become_(source.layer, layer)
    if to == "frozen":
        for layer in new:
            _forget_gradients(layer)
    return Changes(made, kept)


def _change(layer: nn.Module, new: nn.Module, name: str, to: str, settings: dict[str, Any]) -> Change:
    told = ", ".join(f"{name}={value!r}" for name, value in settings.items()) if kind(layer) == kind(new) else ""
    return Change(name, kind(layer), kind(new), COSTS.get(to, told))


def _forget_gradients(layer: nn.Module) -> None:
    """So that an optimizer which holds a frozen layer's parameters does not step by what they had before."""
    for parameter in layer.__dict__["_original"].parameters():
        parameter.grad = None


def _check_settings(who: str, to: str, settings: dict[str, Any]) -> None:
    if to not in TARGETS:
        raise InvalidArgumentError(f"{who}: expected to= one of {', '.join(TARGETS)}, got {to!r}.")
    allowed = SETTINGS.get(to, set())
    if unknown := sorted(set(settings) - allowed):
        known = f"only {', '.join(sorted(allowed))}" if allowed else "none"
        raise InvalidArgumentError(
            f"{who}: expected for to={to!r} {known} of the settings, got {', '.join(unknown)}. Other settings are the "
            "old layers'."
        )
    if to == "ghost" and "virtual_batch_size" not in settings:
        raise InvalidArgumentError(
            f'{who}: expected virtual_batch_size for to="ghost", got none. It is the number of examples that share '
            "statistics, such as 32."
        )
    groups = settings.get("num_groups", 32)
    if not isinstance(groups, int) or groups < 1:
        raise InvalidArgumentError(f"{who}: expected num_groups, at most so many groups, to be >= 1, got {groups!r}.")


def _sources(
    who: str, model: nn.Module, to: str, filter_fn: FilterFn | None, settings: dict[str, Any]
) -> tuple[list[Source], list[Change]]:
    """The layers that are meant, and those that stay with the reason."""
    sources, kept = [], []
    for name, module in model.named_modules():
        if is_frozen(module):
            kept.append(kept_frozen(name, module))
        elif not isinstance(module, nn.modules.batchnorm._BatchNorm):
            continue
        elif filter_fn is not None and not filter_fn(module, name):
            kept.append(Change(name, kind(module), kind(module), "filter_fn"))
        elif type(module) in FAMILY.get(to, ()) and not settings:
            kept.append(Change(name, kind(module), kind(module), "is one already"))
        else:
            sources.append(Source(module, name, dimensions(module)))
    if not sources and not kept:
        batch_norms(who, model)
    return sources, kept


def _measured(
    who: str, model: nn.Module, sources: list[Source], example_inputs: Any
) -> tuple[list[Source], dict[nn.Module, list[Passage]]]:
    """With an example: the sources with their dimensions where only the input tells, and what passes through them."""
    if example_inputs is None:
        return sources, {}
    passages = observe(who, model, example_of(who, example_inputs), [source.layer for source in sources])
    told = {layer: max(len(seen[0].input) - 2, 1) for layer, seen in passages.items() if seen}
    return [s._replace(dimensions=s.dimensions or told.get(s.layer)) for s in sources], passages


def refuse(who: str, reasons: list[tuple[Source, str | None]]) -> None:
    """Raises ModelError with every layer for which there is a reason."""
    found = [f"{source.name or '(the model)'}: {kind(source.layer)}: {why}" for source, why in reasons if why]
    if found:
        raise ModelError(
            f"{who}: {len(found)} of {len(reasons)} layers cannot be changed; nothing is. Leave them out by "
            "filter_fn=lambda layer, name: ..., or see to the reason:\n" + "\n".join(found)
        )


def _loss(source: Source, to: str, settings: dict[str, Any], seen: list[Passage] | None) -> str | None:
    """Why a layer cannot become the new kind, or what would be lost; None if nothing."""
    layer = source.layer
    if (reason := obstacle(layer)) is not None:
        return reason
    if to == "frozen":
        return None if layer.running_mean is not None else "it has no running statistics to freeze"
    if to == "none":
        return None
    plain = to in ("torch", "group", "layer", "instance")
    if plain and epilogue(layer) and not (to == "torch" and gives_back_activation(layer)):
        named = "" if is_timms(layer) else f" {layer.activation!r}"
        return f"its activation{named} would be lost"
    if to == "torch" and getattr(layer, "single_value", "raise") != "raise":
        return "its single_value='running' would be lost; set it to 'raise' first"
    if source.dimensions is None and to not in ("sync", "group", "layer"):
        return "it does not know whether it takes 1, 2 or 3 dimensions; pass example_inputs"
    return None if to in FAMILY else _erased(layer, to, settings, seen)


def _misfits(who: str, model: nn.Module, sources: list[Source], to: str) -> list[str | None]:
    """Why the model's own code would not do with the new layers; None for each layer with which it would.

    It is looked at by torch.fx where arguments or state could be missed; where that sees nothing, nothing is known.
    """
    if to == "frozen":
        return [_shared(model, source.layer, {s.layer for s in sources}) for source in sources]
    ours = any(isinstance(source.layer, Layer) for source in sources)
    if to in FAMILY and not (to == "torch" and ours):
        return [None] * len(sources)
    try:
        graphs = flows(who, model)
    except ModelError:
        graphs = []
    return [_misfit(source.layer, graphs, to) for source in sources]


def _misfit(layer: nn.Module, graphs: list[Flow], to: str) -> str | None:
    extras = {name for flow in graphs for name in flow.extras(layer)}
    if extras:
        return f"the model calls it with {', '.join(sorted(extras))}, which the new layer does not take"
    missing = {"none": {*STATE, *STATISTICS}, "torch": set()}.get(to, STATISTICS)
    read = {name for flow in graphs for name in flow.read.get(layer, ())} & missing
    return f"the model's code reads its {', '.join(sorted(read))}, which the new layer has not" if read else None


def _shared(model: nn.Module, layer: nn.Module, frozen: set[nn.Module]) -> str | None:
    """Whether a parameter also belongs to a layer that goes on learning."""
    own = set(map(id, layer.parameters()))
    for name, module in model.named_modules():
        if module not in frozen and any(id(parameter) in own for parameter in module.parameters(recurse=False)):
            return f"it shares a parameter with {name!r}, which is not to be frozen"
    return None


def _erased(
    layer: nn.modules.batchnorm._BatchNorm, to: str, settings: dict[str, Any], seen: list[Passage] | None
) -> str | None:
    """Whether a group would have one value, which is its own mean: nothing would be left of the input."""
    channels = layer.num_features
    groups = {"layer": 1, "instance": channels}.get(to, groups_of(channels, settings.get("num_groups", 32)))
    if channels // groups > 1:
        return None
    if not seen:
        how = "the example does not reach it" if seen is not None else "pass example_inputs"
        return f"whether its input has more than one value a channel and example is not known; {how}"
    if all(math.prod(passage.input[2:]) > 1 for passage in seen):
        return None
    return f"of its input {tuple(seen[0].input)} nothing would be left: one value a group"


def _built(who: str, source: Source, to: str, settings: dict[str, Any]) -> nn.Module:
    try:
        return build(source, to, settings)
    except SteadynormError as error:
        raise type(error)(f"{who}: at {source.name!r}: {error}") from error
