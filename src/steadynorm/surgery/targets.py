"""What batch normalization layers become: each builder gives the new layer around the old one's own tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from ..nn import (
    BatchNorm1d,
    BatchNorm2d,
    BatchNorm3d,
    BatchRenorm1d,
    BatchRenorm2d,
    BatchRenorm3d,
    FrozenBatchNorm,
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    SyncBatchNorm,
)
from ..nn.renorm import DMAX, RMAX
from .replace import carry, original_of
from .sources import as_module, epilogue, foreign, is_derived

FAMILY: dict[str, tuple[type[nn.modules.batchnorm._BatchNorm], ...]] = {
    "torch": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
    "steadynorm": (BatchNorm1d, BatchNorm2d, BatchNorm3d),
    "sync": (SyncBatchNorm,),
    "ghost": (GhostBatchNorm1d, GhostBatchNorm2d, GhostBatchNorm3d),
    "renorm": (BatchRenorm1d, BatchRenorm2d, BatchRenorm3d),
}
"""Layers that keep running statistics, for one, two and three dimensions."""
INSTANCE = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
SETTINGS = {
    "sync": {"process_group"},
    "ghost": {"virtual_batch_size"},
    "renorm": {"rmax", "dmax"},
    "group": {"num_groups"},
}
"""What a kind of layer has to be told, or may be."""
TARGETS = (*FAMILY, "frozen", "group", "layer", "instance", "none")
LIMITS = {"rmax": RMAX, "dmax": DMAX}
OF_OURS = {
    *("activation", "negative_slope", "single_value", "virtual_batch_size", "rmax", "dmax", "process_group"),
    *("_recent", "_uncorrected", "_path", "_dimensions", "_warned", "_foreign", "_limits"),
}
"""Attributes that one kind of layer has and another has not."""


class Source(NamedTuple):
    """A layer that becomes another, its name, and 1, 2 or 3 for the dimensions of its input after (N, C)."""

    layer: nn.modules.batchnorm._BatchNorm
    name: str
    dimensions: int | None


@torch.inference_mode(False)
def build(source: Source, to: str, settings: dict[str, Any]) -> nn.Module:
    """The new layer."""
    layer = source.layer
    if to in FAMILY:
        return _of_family(source, to, settings)
    if to == "frozen":
        return frozen(layer)
    if to == "none":
        new = as_module(layer)
    elif to == "instance":
        kind = INSTANCE[(source.dimensions or 1) - 1]
        new = _with_affine(kind(layer.num_features, layer.eps, affine=False), layer)
    else:
        groups = 1 if to == "layer" else groups_of(layer.num_features, settings.get("num_groups", 32))
        new = _with_affine(nn.GroupNorm(groups, layer.num_features, layer.eps, affine=False), layer)
    carry(layer, new)
    return new


def groups_of(channels: int, most: int) -> int:
    """The most groups of equal size, of two channels or more where there are two, not above `most`."""
    return max(n for n in range(1, max(min(most, channels // 2), 1) + 1) if channels % n == 0)


def frozen(layer: nn.Module) -> FrozenBatchNorm:
    """The layer with fixed statistics, which knows what it was; its buffers can be trained through."""
    new = FrozenBatchNorm.from_batch_norm(layer)
    for name, value in epilogue(layer).items():
        setattr(new, name, value)
    carry(layer, new)
    new.__dict__["_original"] = original_of(layer)  # past nn.Module, which would make it a child
    return new


def _of_family(source: Source, to: str, settings: dict[str, Any]) -> nn.Module:
    """A layer of another class with the old one's attributes, but those that the class has of its own."""
    layer = source.layer
    kept = {name: value for name, value in layer.__dict__.items() if name not in OF_OURS}
    limits = {name: getattr(layer, name) for name, usual in LIMITS.items() if getattr(layer, name, usual) != usual}
    limits = limits or layer.__dict__.get("_limits", {})  # what renorm was told, for the way back to it
    if to != "renorm" and limits:
        kept["_limits"] = limits
    back = foreign(layer)
    if to == "torch" and back is not None:
        new = back.__new__(back)
        new.__dict__.update(kept)
        return new
    kind = FAMILY[to][-1 if source.dimensions is None or to == "sync" else source.dimensions - 1]
    given = {name: value for name, value in (limits | settings).items() if name in SETTINGS.get(to, ())}
    if to == "sync" and given.get("process_group") is None:
        given["process_group"] = getattr(layer, "process_group", None)
    if to != "torch":
        given |= {"single_value": getattr(layer, "single_value", "raise"), **epilogue(layer)}
    tracks = {"affine": False, "track_running_stats": layer.track_running_stats, "device": "meta"}
    template = kind(layer.num_features, eps=layer.eps, momentum=layer.momentum, **tracks, **given)
    own = {name: value for name, value in template.__dict__.items() if name in OF_OURS}
    new = kind.__new__(kind)
    new.__dict__.update(kept | own)
    if to == "sync":
        new.__dict__.update(_path=source.name or None, _dimensions=source.dimensions)
    if to != "torch" and (was := type(layer) if is_derived(layer) else back) is not None:
        new.__dict__["_foreign"] = was
    return new


def _with_affine(new: nn.Module, layer: nn.Module) -> nn.Module:
    """`new` with the layer's own weight and bias."""
    new.__dict__["affine"] = layer.weight is not None or layer.bias is not None
    new._parameters.update(weight=layer._parameters["weight"], bias=layer._parameters["bias"])
    return new
