"""freeze_ and unfreeze_: batch normalization that train() does not wake, and the way back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..nn import FrozenBatchNorm
from ..nn.frozen import STATE
from ..nn.layer import NARROW
from .changes import Change, Changes, kind
from .convert import converted
from .replace import FilterFn, all_or_nothing, become_, carry, check_model


def freeze_(model: nn.Module, *, filter_fn: FilterFn | None = None) -> Changes:
    """Fixes the statistics, weight and bias of batch normalization layers, torch's too, until `unfreeze_`.

    They become `FrozenBatchNorm`: `train()` changes nothing, no parameter of theirs is left to learn, and gradients
    pass through to what is before them. State dicts are the same. An optimizer keeps the parameters, which get no
    gradient and so no step, for the way back; gradients that they have are dropped.

    Args:
        model: not wrapped, not compiled and not scripted.
        filter_fn: filter_fn(layer, name) says whether a layer is meant; by default all are.

    Returns:
        What changed and what was kept, with reasons; printable.

    Raises:
        InvalidArgumentError (a ValueError): no batch normalization layer.
        ModelError (a ValueError): a wrapped model, or layers that cannot be frozen, each with the reason. The model is
            as before.

    Example::

        sn.freeze_(model, filter_fn=lambda layer, name: name.startswith("backbone."))

    Reference: He et al. 2016, arXiv:1512.03385, appendix A; Wu & Johnson 2021, arXiv:2105.07576, sec. 3.4.
    """
    return converted("freeze_", model, "frozen", filter_fn, None, None, {})


def unfreeze_(model: nn.Module, *, filter_fn: FilterFn | None = None) -> Changes:
    """Makes layers that `freeze_` froze what they were, with the parameters that they had.

    So an optimizer built before goes on. Values, device and dtype are those that the frozen layers have now: a state
    dict loaded meanwhile, or a move, counts. `requires_grad` is what it was before freezing: a model's
    `requires_grad_(False)` does not reach frozen layers. Nor does a cast to 16 bits, which widens them: a layer that
    was float32 is float32 again.

    Args:
        model: as of `freeze_`.
        filter_fn: filter_fn(layer, name) says whether a layer is meant; by default all frozen ones are.

    Returns:
        What changed and what was kept, with reasons; printable.

    Raises:
        ModelError (a ValueError): no frozen layer, a wrapped model, values of another shape or on the meta device, or
            a layer that shares parameters with one that would stay frozen. The model is as before.

    Example::

        sn.unfreeze_(model)
    """
    who = "unfreeze_"
    check_model(who, model)
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, FrozenBatchNorm)]
    if not found:
        raise ModelError(f"{who}: expected a model with frozen layers, got none. freeze_ makes them.")
    made, kept, pairs = [], [], []
    for name, layer in found:
        original = layer._original
        if filter_fn is not None and not filter_fn(layer, name):
            kept.append(Change(name, kind(layer), kind(layer), "filter_fn"))
        elif original is None:
            kept.append(Change(name, kind(layer), kind(layer), "not frozen by freeze_: what it was is not known"))
        else:
            made.append(Change(name, kind(layer), kind(original)))
            pairs.append((layer, original))
    _check_shared(who, model, [original for _, original in pairs])
    values = [pair for layer, original in pairs for pair in _values(who, layer, original)]
    with all_or_nothing(model):
        for tensor, value in values:
            _put_back(tensor, value)
        for layer, original in pairs:
            carry(layer, original)
            if (tracks := layer.__dict__.get("track_running_stats")) is not None:
                original.track_running_stats = tracks  # a hold_statistics, left meanwhile, says so to the layer
            become_(layer, original)
    return Changes(made, kept)


def _check_shared(who: str, model: nn.Module, thawed: list[nn.Module]) -> None:
    """Raises ModelError where a layer that stays frozen has a parameter of one that is to learn again."""
    known = {id(parameter) for original in thawed for parameter in original.parameters()}
    frozen = [(name, layer._original) for name, layer in model.named_modules() if isinstance(layer, FrozenBatchNorm)]
    for name, original in frozen:
        if original is None or any(original is one for one in thawed):
            continue
        if any(id(parameter) in known for parameter in original.parameters()):
            raise ModelError(
                f"{who}: expected layers that share a parameter to be unfrozen together, got {name!r} left frozen, "
                "which would undo what the others learn. Let filter_fn take all of them, or none."
            )


def _values(who: str, layer: FrozenBatchNorm, original: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """The tensors of what the layer was, each with the value that it has now."""
    pairs = []
    for name in STATE:
        tensor, value = getattr(original, name), getattr(layer, name)
        if tensor is None or value is None:
            continue
        if tensor.shape != value.shape:
            raise ModelError(
                f"{who}: expected {name} of shape {tuple(tensor.shape)}, as it was frozen, got {tuple(value.shape)} in "
                f"{layer}. Freeze a layer of that shape instead."
            )
        if tensor.is_meta != value.is_meta:
            raise ModelError(
                f"{who}: expected {name} where values are, got it on {value.device} and on {tensor.device} before it "
                f"was frozen, in {layer}. Move a model to or from the meta device while it is not frozen."
            )
        pairs.append((tensor, value))
    return pairs


@torch.inference_mode(False)
@torch.no_grad()
def _put_back(tensor: Tensor, value: Tensor) -> None:
    """Into the same memory, or the same tensor where the layer is elsewhere or of another dtype now.

    A frozen layer widens 16 bits by itself, which is no wish to have it widened.
    """
    widened = tensor.dtype in NARROW and value.dtype == torch.float32
    if tensor.device == value.device and (tensor.dtype == value.dtype or widened):
        tensor.copy_(value)
    else:
        tensor.data = value.detach().clone()
