"""Keras' BatchNormalization, and ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from ..errors import InvalidArgumentError, ModelError
from ..nn import FrozenBatchNorm
from .layers import PLAIN, SYNCED, Array, Parts, build, complement, kind_of, one_axis, take_apart, vectors

DEFAULTS: dict[str, Any] = {"axis": -1, "momentum": 0.99, "epsilon": 1e-3, "center": True, "scale": True}
"""What Keras' layer is without further settings."""


class KerasBatchNorm(NamedTuple):
    """What makes a Keras layer.

    Attributes:
        config: arguments of `keras.layers.BatchNormalization`.
        weights: for its `set_weights`, once it is built: gamma and beta, where it has them, moving_mean and
            moving_variance, each (C,).
    """

    config: dict[str, Any]
    weights: list[Array]


def from_keras(
    layer: Any, weights: Sequence[Any] | None = None, *, ndim: int | None = None, count: int | None = None
) -> nn.Module:
    r"""Our layer for a `keras.layers.BatchNormalization`: its settings and weights in torch's terms.

    .. math:: \text{momentum} = 1 - \text{momentum}_\text{Keras}, \quad
        \sigma^2 = \sigma^2_\text{Keras} \frac{\text{count}}{\text{count} - 1}

    The layer normalizes dimension 1 of its inputs, whatever `axis` was: permute channels-last data, or have all
    layers channels first. Keras itself is not imported.

    Args:
        layer: Keras' layer, built; or its configuration, a dictionary, of which what is missing is Keras' default.
            Initializers, regularizers and constraints are not looked at.
        weights: as its `get_weights` gives them; needed with a configuration.
        ndim: number of dimensions of the layer's inputs, 2 to 5; a built layer knows it.
        count: values a channel in a batch of training, batch size times positions, at least 2. Keras' moving variance
            averages variances that are divided by n, torch's running_var those divided by n - 1. Without it the
            variance is taken as it is: outputs in eval mode are then equal to Keras' inference, and training goes on
            towards a variance larger by n / (n - 1).

    Returns:
        BatchNorm1d, 2d or 3d in train mode, on the CPU; SyncBatchNorm for ``synchronized=True``; FrozenBatchNorm for
        ``trainable=False``, which is what that means in Keras. For ``scale=False`` with ``center=True`` the weight is
        ones and asks for no gradient. num_batches_tracked is 0, as Keras does not count.

    Raises:
        InvalidArgumentError (a ValueError): no batch normalization of Keras, weights that do not go with it, ndim
            unknown, or count below 2.
        ModelError (a ValueError): a layer without counterpart, of several axes, with renorm or virtual_batch_size.

    Example::

        norm = sn.from_keras(keras_model.get_layer("bn1"))
        norm = sn.from_keras({"epsilon": 1e-3}, [gamma, beta, moving_mean, moving_variance], ndim=4)

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, Alg. 2, for the n - 1.
    """
    who = "from_keras"
    config = _config(who, layer)
    given = getattr(layer, "get_weights", list)() if weights is None else weights
    if ndim is None:
        ndim = getattr(getattr(layer, "input_spec", None), "ndim", None)
    one_axis(who, config["axis"])
    if config.get("renorm"):
        raise ModelError(
            f"{who}: expected a layer without renorm, got renorm=True, whose training has no counterpart. Its "
            "inference has: pass its configuration with renorm=False and the weights without the last three."
        )
    if config.get("virtual_batch_size"):
        raise ModelError(
            f"{who}: expected a layer that normalizes whole batches, got virtual_batch_size="
            f"{config['virtual_batch_size']}, whose training is that of GhostBatchNorm. Its inference has a "
            "counterpart: pass its configuration without virtual_batch_size."
        )
    present = {"gamma": config["scale"], "beta": config["center"], "moving_mean": True, "moving_variance": True}
    names = [name for name, there in present.items() if there]
    if len(given) != len(names):
        raise InvalidArgumentError(
            f"{who}: expected {len(names)} weights ({', '.join(names)}), got {len(given)}. Build the layer, or pass "
            "what its get_weights() gives."
        )
    values = vectors(who, dict(zip(names, given, strict=True)))
    momentum = complement(config["momentum"])
    parts = Parts(momentum, config["epsilon"], *(values.get(name) for name in present))  # type: ignore[arg-type]
    frozen = not config.get("trainable", True)
    kind = FrozenBatchNorm if frozen else kind_of(who, ndim, bool(config.get("synchronized")))
    return build(who, kind, parts, count)


def to_keras(layer: nn.Module, *, axis: int = -1, count: int | None = None) -> KerasBatchNorm:
    r"""What makes a `keras.layers.BatchNormalization` of a layer of torch's or ours: `from_keras` undone.

    Args:
        layer: BatchNorm1d, 2d, 3d, SyncBatchNorm, or FrozenBatchNorm, which becomes ``trainable=False`` with Keras'
            default momentum, having none; with running statistics and without an activation inside. A weight that is
            ones and asks for no gradient becomes ``scale=False``.
        axis: of the channels in Keras: -1, or 1 for channels first.
        count: values a channel in a batch of training, at least 2; see `from_keras`. Without it the variance is taken
            as it is, and inference is equal.

    Returns:
        The configuration and the weights. `num_batches_tracked` is not among them; from_keras(\*to_keras(layer),
        ndim=4) is otherwise the same layer, in steadynorm's kind.

    Raises:
        ModelError (a ValueError): a layer without counterpart; it says why.
        InvalidArgumentError (a ValueError): count below 2, or axis is no int.

    Example::

        config, weights = sn.to_keras(model.bn1)
        norm = keras.layers.BatchNormalization(**config)
        norm.build((None, 32, 32, 64))
        norm.set_weights(weights)
    """
    who = "to_keras"
    parts = take_apart(who, layer, count, (*PLAIN, FrozenBatchNorm))
    config: dict[str, Any] = {
        "axis": one_axis(who, axis),
        "momentum": complement(parts.momentum),
        "epsilon": parts.eps,
        "center": parts.shift is not None,
        "scale": parts.scale is not None,
    }
    if isinstance(layer, SYNCED):
        config["synchronized"] = True
    if isinstance(layer, FrozenBatchNorm):
        config["trainable"] = False
    if parts.mean.dtype == "float64":
        config["dtype"] = "float64"
    values = (parts.scale, parts.shift, parts.mean, parts.var)
    return KerasBatchNorm(config, [value for value in values if value is not None])


def _config(who: str, layer: Any) -> dict[str, Any]:
    """The configuration, complete."""
    if isinstance(layer, Mapping):
        return {**DEFAULTS, **layer}
    config = layer.get_config() if hasattr(layer, "get_config") else {}
    if not config.keys() >= DEFAULTS.keys():
        raise InvalidArgumentError(
            f"{who}: expected a keras.layers.BatchNormalization or its configuration, got {type(layer).__name__}. Pass "
            "one layer of the model."
        )
    return config
