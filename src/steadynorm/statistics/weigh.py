"""In inference, each example's own statistics count beside the running ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from ..errors import InvalidArgumentError, ModelError
from ..inputs import as_mask
from ..moments import measure
from ..nn import WhiteningBatchNorm
from ..nn.batchnorm import _BatchNorm
from ..walk import batch_norms
from .sites import as_written


@contextmanager
def weigh_examples(model: nn.Module, weight: float) -> Iterator[None]:
    r"""In the context, layers in eval mode normalize each example by its own statistics too, with that weight.

    .. math:: \mu_i = a m_i + (1 - a) \mu, \quad \sigma_i^2 = a v_i + (1 - a) \sigma^2 + a (1 - a) (m_i - \mu)^2

    m_i and v_i are mean and variance (divided by n) of example i over its positions, real ones if there is a mask; mu
    and sigma² are the running statistics, and a is the weight. sigma_i² is the variance of the mixture of both, in
    which E[x²] is averaged as E[x] is. In training an example is part of the batch that normalizes it; the running
    statistics know nothing of it, and this makes up for the difference, most with small batches. An example's
    output does not depend on the others'. Gradients go through m_i and v_i.

    Layers in train mode and layers without running statistics are as always, and `FrozenBatchNorm` is. Parameters,
    statistics and modes do not change. Compiled models run without their compiled code.

    Args:
        model: any model; torch's layers take part.
        weight: a, in [0, 1]; 0 changes nothing, 1 forgets the running statistics. Find it on validation data.

    Raises:
        InvalidArgumentError (a ValueError): a weight outside [0, 1], no batch normalization layer, or a whitening
            layer, whose statistics are not channel by channel.
        ModelError (a ValueError), in a forward: a layer whose input comes by another name than ``input``.

    Example::

        with torch.inference_mode(), sn.weigh_examples(model.eval(), 0.02):
            predictions = model(images)

    Reference: Summers & Dinneen 2020, arXiv:1906.03548, sec. 3.1.
    """
    who = "weigh_examples"
    if not 0 <= weight <= 1:
        raise InvalidArgumentError(f"{who}: expected a weight in [0, 1], got {weight}. It is that of the example.")
    layers = batch_norms(who, model)
    for name, layer in layers.items():
        if isinstance(layer, WhiteningBatchNorm):
            raise InvalidArgumentError(
                f"{who}: expected layers that normalize channel by channel, got WhiteningBatchNorm at {name!r}. Pass "
                "the part of the model that holds the other layers."
            )

    hooks = []
    try:
        for name, layer in layers.items():
            hooks.append(layer.register_forward_pre_hook(_Weighing(name, weight), with_kwargs=True))
        with as_written():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def is_weighed(layer: nn.Module) -> bool:
    return any(isinstance(hook, _Weighing) for hook in layer._forward_pre_hooks.values())


class _Weighing(NamedTuple):
    """The hook before a layer, by its name in the model."""

    name: str
    weight: float

    def __call__(self, layer: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        if layer.training or layer.running_mean is None or layer.running_var is None:
            return None
        mask = kwargs.get("mask") if isinstance(layer, _BatchNorm) else None
        if args:
            return (_weighed(layer, args[0], mask, self.weight), *args[1:]), kwargs
        if "input" not in kwargs:
            raise ModelError(
                f"weigh_examples: expected the input of {self.name!r} first, or as input=, got "
                f"{', '.join(kwargs) or 'nothing'}. Name the argument of the layer's forward so."
            )
        return args, {**kwargs, "input": _weighed(layer, kwargs["input"], mask, self.weight)}


def _weighed(layer: Any, x: Tensor, mask: Tensor | None, weight: float) -> Tensor:
    """The input of which the running statistics make what the mixture makes of x."""
    if x.dim() < 2 or not x.is_floating_point() or x.shape[1] != layer.num_features:
        return x  # the layer will say what it expected
    if mask is not None:
        mask = as_mask(layer._speaker(), mask, x)
    own = measure(_by_positions(x), dims=[2], mask=None if mask is None else _by_positions(mask))
    mean, var = layer.running_mean.to(own.mean.dtype), layer.running_var.to(own.mean.dtype)
    share = weight * (own.count > 0).to(mean.dtype)
    apart = own.mean - mean
    mixed = share * own.var + (1 - share) * var + share * (1 - share) * apart.square()
    slope = ((var + layer.eps) / (mixed + layer.eps)).sqrt()
    return _per_example(slope, x) * (x - _per_example(mean + share * apart, x)) + _per_example(mean.expand_as(apart), x)


def _by_positions(x: Tensor) -> Tensor:
    """(N, C, *) → (N, C, L)."""
    return x.reshape(x.shape[0], x.shape[1], math.prod(x.shape[2:]))


def _per_example(values: Tensor, x: Tensor) -> Tensor:
    """(N, C) → (N, C, 1, ...), of the dtype of x."""
    return values.to(x.dtype).reshape(*values.shape, *[1] * (x.dim() - 2))
