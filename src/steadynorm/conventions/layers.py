"""What all frameworks' layers are made of, and ours made of that and taken apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from operator import index
from typing import Any, NamedTuple, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..errors import InvalidArgumentError, ModelError
from ..nn import BatchNorm1d, BatchNorm2d, BatchNorm3d, FrozenBatchNorm, SyncBatchNorm

Array = NDArray[Any]
KINDS: dict[int, type] = {2: BatchNorm1d, 3: BatchNorm1d, 4: BatchNorm2d, 5: BatchNorm3d}
"""Our layer for inputs of so many dimensions."""
SYNCED = (SyncBatchNorm, nn.SyncBatchNorm)
PLAIN = (BatchNorm1d, BatchNorm2d, BatchNorm3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, *SYNCED)
"""Layers with counterparts; not their subclasses, which do something else."""
KERAS_DEFAULT = 0.01
"""The momentum of a layer that has none, being frozen; 0.99 in Keras."""


class Parts(NamedTuple):
    """A layer in no framework's terms.

    Attributes:
        momentum: weight of the new batch in the running statistics, in [0, 1].
        eps: added to the variance.
        scale: (C,), or None for a layer that does not scale.
        shift: (C,), or None.
        mean: (C,).
        var: (C,), divided by n.
    """

    momentum: float
    eps: float
    scale: Array | None
    shift: Array | None
    mean: Array
    var: Array


def complement(momentum: float) -> float:
    """1 - momentum in decimals, as people write them: 0.9 becomes 0.1, not 0.09999999999999998."""
    return float(1 - Decimal(repr(float(momentum))))


@torch.no_grad()
def build(who: str, kind: type, parts: Parts, count: int | None) -> nn.Module:
    """A layer of ours of these parts."""
    check_count(who, count)
    dtype = torch.float64 if parts.mean.dtype == np.float64 else torch.float32
    settings: dict[str, Any] = {} if kind is FrozenBatchNorm else {"momentum": parts.momentum}
    layer = kind(
        len(parts.mean),
        parts.eps,
        affine=parts.scale is not None or parts.shift is not None,
        bias=parts.shift is not None,
        dtype=dtype,
        **settings,
    )
    grown = 1.0 if count is None else count / (count - 1)
    given = {"weight": parts.scale, "bias": parts.shift, "running_mean": parts.mean}
    for name, values in {**given, "running_var": parts.var.astype(np.float64) * grown}.items():
        if values is not None:
            getattr(layer, name).copy_(torch.from_numpy(np.array(values, np.float64)))
    if isinstance(layer.weight, nn.Parameter) and parts.scale is None:
        layer.weight.requires_grad_(False)  # ones for good: torch has no bias without a weight
    return layer


def take_apart(who: str, layer: nn.Module, count: int | None, kinds: tuple[type, ...] = PLAIN) -> Parts:
    """The parts of a layer of torch's or ours."""
    check_count(who, count)
    if type(layer) not in kinds:
        kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
        raise ModelError(
            f"{who}: expected torch's or steadynorm's BatchNorm1d, 2d, 3d or SyncBatchNorm, got {kind}, which has no "
            "counterpart. Give its state dict to a BatchNorm of the same size, if that does in its place."
        )
    activation = getattr(layer, "activation", None)
    if activation is not None:
        raise ModelError(
            f"{who}: expected a layer without an activation, got activation={activation!r} inside it. Set the layer's "
            "activation to None, and put the activation after the new layer."
        )
    mean, var, momentum = layer.running_mean, layer.running_var, getattr(layer, "momentum", KERAS_DEFAULT)
    if mean is None or var is None:
        raise ModelError(
            f"{who}: expected running statistics, got track_running_stats=False, which has no counterpart. Train the "
            "layer with running statistics."
        )
    if momentum is None:
        raise ModelError(
            f"{who}: expected running statistics that move by a momentum, got momentum=None, the average of all "
            "batches, which has no counterpart. Set the layer's momentum to a number."
        )
    scale: Any = None if _is_fixed_at_one(layer.weight) else layer.weight
    shrunk = 1.0 if count is None else (count - 1) / count
    bias, eps = layer.bias, float(layer.eps)  # type: ignore[arg-type]
    return Parts(float(momentum), eps, _array(scale), _array(bias), _array(mean), _array(var, shrunk))  # type: ignore[arg-type]


def kind_of(who: str, ndim: int | None, synced: bool) -> type:
    """Our class for such inputs."""
    if synced:
        return SyncBatchNorm
    if ndim not in KINDS:
        raise InvalidArgumentError(
            f"{who}: expected ndim from 2 to 5, got {ndim}. It is the number of dimensions of the layer's inputs: 4 "
            "for images, for which it becomes BatchNorm2d."
        )
    return KINDS[ndim]


def check_count(who: str, count: int | None) -> None:
    if count is not None and (not isinstance(count, SupportsIndex) or index(count) < 2):
        raise InvalidArgumentError(
            f"{who}: expected count >= 2, got {count!r}. It is the number of values a channel in a batch of training: "
            "batch size times height times width."
        )


def one_axis(who: str, axis: Any) -> int:
    """The axis of the channels: a number, or a list of one, as older Keras has it."""
    axes = list(axis) if isinstance(axis, Sequence) else [axis]
    if len(axes) != 1 or not isinstance(axes[0], SupportsIndex):
        raise InvalidArgumentError(
            f"{who}: expected statistics over all axes but one, got axis={axis!r}. torch's layers have one axis of "
            "channels: reshape the inputs, so that the axes become one."
        )
    return index(axes[0])


def vectors(who: str, given: Mapping[str, Any]) -> dict[str, Array]:
    """Named values as (C,) arrays of one C."""
    arrays = {
        name: np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
        for name, values in given.items()
    }
    if len({array.shape for array in arrays.values()}) != 1 or any(array.ndim != 1 for array in arrays.values()):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise InvalidArgumentError(f"{who}: expected one value a channel each, got {shapes}. Pass one layer's values.")
    return arrays


def _is_fixed_at_one(weight: Any) -> bool:
    """Whether a weight changes nothing, and never will."""
    return isinstance(weight, nn.Parameter) and not weight.requires_grad and bool((weight == 1).all())


def _array(values: Any, factor: float = 1.0) -> Any:
    """A copy, times `factor`: float64 of float64, else float32."""
    if values is None:
        return None
    wide = np.float64 if values.dtype == torch.float64 else np.float32
    return (values.detach().cpu().double() * factor).numpy().astype(wide)
