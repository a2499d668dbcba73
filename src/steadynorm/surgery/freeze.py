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
    dict loaded meanwhile, or a move, counts.

    Args:
        model: as of `freeze_`.
        filter_fn: filter_fn(layer, name) says whether a layer is meant; by default all frozen ones are.

    Returns:
        What changed and what was kept, with reasons; printable.

    Raises:
        ModelError (a ValueError): no frozen layer, or a wrapped model. The model is as before.

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
    values = [pair for layer, original in pairs for pair in _values(who, layer, original)]
    with all_or_nothing(model):
        for layer, original in pairs:
            carry(layer, original)
            become_(layer, original)
    for tensor, value in values:
        _put_back(tensor, value)
    return Changes(made, kept)


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
        pairs.append((tensor, value))
    return pairs


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
