"""Numbers of a layer, read into the one form the arithmetic has, and written back, rounded once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from .arithmetic import Weights
from .layers import is_norm, wide


def read(layer: Any, channels: int | None = None) -> Weights:
    """The numbers of a convolution, a linear layer or a norm.

    Args:
        layer: the module.
        channels: of what is flattened before a linear layer; None if nothing is.
    """
    if is_norm(layer):
        count = len(layer.running_mean)
        scale = torch.ones(count, dtype=torch.float64) if layer.weight is None else wide(layer.weight)
        return Weights(scale.reshape(count, 1, 1, 1), _bias(layer, count))
    weight = wide(layer.weight)
    if isinstance(layer, nn.Linear):
        out = len(weight)
        return Weights(weight.reshape(1, out, channels or weight.shape[1], -1), _bias(layer, out))
    groups = layer.groups
    weight = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    if isinstance(layer, _ConvTransposeNd):
        weight = weight.transpose(1, 2)
    return Weights(weight, _bias(layer, layer.out_channels))


def write_(layer: Any, weights: Weights, dtype: torch.dtype | None = None) -> None:
    """Gives the layer new numbers, in its own dtype or the one given."""
    weight = weights.weight.transpose(1, 2) if isinstance(layer, _ConvTransposeNd) else weights.weight
    old = layer.weight if layer.weight is not None else layer.running_mean
    _set_(layer, "weight", weight.reshape(weights.bias.shape if is_norm(layer) else old.shape), old, dtype)
    _set_(layer, "bias", weights.bias, old, dtype)


def _set_(layer: nn.Module, name: str, values: Tensor, like: Tensor, dtype: torch.dtype | None) -> None:
    """A new tensor where the layer keeps one of that name: a buffer, or a parameter like the weight."""
    kept = dtype or like.dtype
    same = values.shape == like.shape  # then in the weight's memory order
    new = torch.empty_like(like.detach(), dtype=kept) if same else like.detach().new_empty(values.shape, dtype=kept)
    new.copy_(values)
    if name in layer._buffers:
        layer._buffers[name] = new
    else:
        setattr(layer, name, nn.Parameter(new, requires_grad=isinstance(like, nn.Parameter) and like.requires_grad))


def _bias(layer: Any, count: int) -> Tensor:
    return torch.zeros(count, dtype=torch.float64) if layer.bias is None else wide(layer.bias)
