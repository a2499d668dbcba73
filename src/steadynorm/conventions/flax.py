"""Flax' BatchNorm, of linen and of nnx, and ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from ..errors import InvalidArgumentError, ModelError
from .layers import SYNCED, Parts, build, complement, kind_of, one_axis, take_apart, vectors

DEFAULTS: dict[str, Any] = {
    "axis": -1,
    "momentum": 0.99,
    "epsilon": 1e-5,
    "use_bias": True,
    "use_scale": True,
    "axis_name": None,
    "axis_index_groups": None,
}
"""What Flax' layer is without further settings."""
PLACES = {
    "scale": ("params", "use_scale"),
    "bias": ("params", "use_bias"),
    "mean": ("batch_stats", ""),
    "var": ("batch_stats", ""),
}
"""The collection in which a value is, and the setting without which it is not there."""


class FlaxBatchNorm(NamedTuple):
    """What makes a Flax layer.

    Attributes:
        settings: arguments of `flax.linen.BatchNorm`, or of `flax.nnx.BatchNorm` beside its num_features and rngs.
        variables: for linen's `apply`: {"params": {"scale", "bias"}, "batch_stats": {"mean", "var"}}, each (C,);
            without scale or bias where it has none.
    """

    settings: dict[str, Any]
    variables: dict[str, dict[str, Any]]


def from_flax(
    module: Any,
    variables: Mapping[str, Mapping[str, Any]] | None = None,
    *,
    ndim: int | None = None,
    count: int | None = None,
) -> nn.Module:
    r"""Our layer for a BatchNorm of `flax.linen` or `flax.nnx`: its settings and values in torch's terms.

    .. math:: \text{momentum} = 1 - \text{momentum}_\text{Flax}, \quad
        \sigma^2 = \sigma^2_\text{Flax} \frac{\text{count}}{\text{count} - 1}

    The layer normalizes dimension 1 of its inputs, whatever `axis` was: permute channels-last data, or have all
    layers channels first. Flax itself is not imported. `use_running_average` is the mode, and left to `train()`.

    Args:
        module: Flax' module; or its settings, a dictionary, of which what is missing is Flax' default.
        variables: this layer's {"params": {"scale", "bias"}, "batch_stats": {"mean", "var"}}, each (C,), arrays of any
            kind; a module of nnx holds them itself.
        ndim: number of dimensions of the layer's inputs, 2 to 5.
        count: values a channel in a batch of training, batch size times positions, at least 2. Flax averages variances
            that are divided by n, torch those divided by n - 1. Without it the variance is taken as it is: outputs in
            eval mode are then equal, and training goes on towards a variance larger by n / (n - 1).

    Returns:
        BatchNorm1d, 2d or 3d in train mode, on the CPU; SyncBatchNorm for a module with an axis_name. For
        ``use_scale=False`` with ``use_bias=True`` the weight is ones and asks for no gradient. num_batches_tracked is
        0, as Flax does not count.

    Raises:
        InvalidArgumentError (a ValueError): no batch normalization of Flax, variables that do not go with it, ndim
            unknown, several axes, or count below 2.
        ModelError (a ValueError): axis_index_groups, which have no counterpart that can be made here.

    Example::

        norm = sn.from_flax({"momentum": 0.9}, {"params": params["bn1"], "batch_stats": stats["bn1"]}, ndim=4)

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, Alg. 2, for the n - 1.
    """
    who = "from_flax"
    settings = _settings(who, module)
    one_axis(who, settings["axis"])
    if settings["axis_index_groups"] is not None:
        raise ModelError(
            f"{who}: expected one group of devices, got axis_index_groups={settings['axis_index_groups']}. Pass the "
            "settings without them, and give the SyncBatchNorm its process_group."
        )
    values = vectors(who, _values(who, module if variables is None else variables, settings))
    parts = Parts(
        complement(settings["momentum"]),
        settings["epsilon"],
        *(values.get(name) for name in PLACES),  # type: ignore[arg-type]
    )
    return build(who, kind_of(who, ndim, settings["axis_name"] is not None), parts, count)


def to_flax(
    layer: nn.Module, *, axis: int = -1, axis_name: str | None = None, count: int | None = None
) -> FlaxBatchNorm:
    r"""What makes a BatchNorm of Flax of a layer of torch's or ours: `from_flax` undone.

    Args:
        layer: BatchNorm1d, 2d, 3d or SyncBatchNorm, with running statistics and without an activation inside. A weight
            that is ones and asks for no gradient becomes ``use_scale=False``.
        axis: of the channels in Flax: -1, or 1 for channels first.
        axis_name: for a SyncBatchNorm, and for no other: the mapped axis over which Flax averages. It does so without
            weights, which is the same for batches of one size.
        count: values a channel in a batch of training, at least 2; see `from_flax`. Without it the variance is taken as
            it is, and inference is equal.

    Returns:
        The settings and the variables. `num_batches_tracked` is not among them; from_flax(\*to_flax(layer), ndim=4) is
        otherwise the same layer, in steadynorm's kind.

    Raises:
        ModelError (a ValueError): a layer without counterpart; it says why.
        InvalidArgumentError (a ValueError): count below 2, axis is no int, or an axis_name that is missing or too many.

    Example::

        settings, variables = sn.to_flax(model.bn1)
        y = flax.linen.BatchNorm(**settings).apply(variables, x, use_running_average=True)
    """
    who = "to_flax"
    parts = take_apart(who, layer, count)
    if isinstance(layer, SYNCED) != (axis_name is not None):
        raise InvalidArgumentError(
            f"{who}: expected axis_name for a SyncBatchNorm, and for no other layer, got {axis_name!r} for "
            f"{type(layer).__name__}. It names the mapped axis whose devices share statistics."
        )
    settings: dict[str, Any] = {
        "axis": one_axis(who, axis),
        "momentum": complement(parts.momentum),
        "epsilon": parts.eps,
        "use_bias": parts.shift is not None,
        "use_scale": parts.scale is not None,
    }
    if axis_name is not None:
        settings["axis_name"] = axis_name
    values = zip(PLACES.items(), (parts.scale, parts.shift, parts.mean, parts.var), strict=True)
    variables: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}}
    for (name, (collection, _)), value in values:
        if value is not None:
            variables[collection][name] = value
    return FlaxBatchNorm(settings, variables)


def _settings(who: str, module: Any) -> dict[str, Any]:
    if isinstance(module, Mapping):
        return {**DEFAULTS, **module}
    missing = [name for name in DEFAULTS if not hasattr(module, name)]
    if missing:
        raise InvalidArgumentError(
            f"{who}: expected a BatchNorm of flax.linen or flax.nnx, or its settings, got {type(module).__name__}, "
            f"which has no {missing[0]}."
        )
    return {name: getattr(module, name) for name in DEFAULTS}


def _values(who: str, holder: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """scale, bias, mean and var, those that are there by the settings, from variables or a module of nnx."""
    found = {}
    for name, (collection, setting) in PLACES.items():
        value = holder.get(collection, {}).get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
        wanted = not setting or settings[setting]
        if wanted != (value is not None):
            expected = "of shape (C,), got none" if wanted else f"to be missing with {setting}=False, got one"
            raise InvalidArgumentError(
                f"{who}: expected variables[{collection!r}][{name!r}] {expected}. Pass this layer's own settings and "
                '{"params": ..., "batch_stats": ...}.'
            )
        if wanted:
            found[name] = value
    return found
