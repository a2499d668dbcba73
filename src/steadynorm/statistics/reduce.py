"""Running statistics of several ranks become one: by counts, with the total variance."""

from __future__ import annotations

import zlib
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import InvalidArgumentError, SynchronizationError
from ..moments import pool, statistics_dtype
from ..ops.sync import exchanging
from ..walk import batch_norms


class Change(NamedTuple):
    """What a layer's running statistics were on this rank, and are now on all; each (C,) float64."""

    old_mean: Tensor
    old_var: Tensor
    mean: Tensor
    var: Tensor


class _Layer(NamedTuple):
    """A layer that keeps running statistics."""

    mean: Tensor
    var: Tensor
    weight: Tensor


@torch.no_grad()
def reduce_statistics_(
    model: nn.Module, *, weight: float | None = None, process_group: dist.ProcessGroup | None = None
) -> dict[str, Change]:
    r"""Gives every rank the running statistics of all ranks together.

    .. math:: \mu = \sum_r w_r \mu_r, \quad \sigma^2 = \sum_r w_r \bigl(\sigma_r^2 + (\mu_r - \mu)^2\bigr)

    In data-parallel training each rank's layers have seen its own data only; torch's `DistributedDataParallel` keeps
    those of rank 0, and a plain mean of variances forgets how far the means are apart. Call it on all ranks, before a
    checkpoint or an evaluation; torch's own layers take part too. A rank of weight 0 is as if it were not there, and
    gets what the others have. `num_batches_tracked` stays.

    Args:
        model: the same on every rank.
        weight: of this rank, such as the number of its examples, finite and at least 0; by default each layer's
            num_batches_tracked. The weights of all ranks are divided by their sum.
        process_group: the ranks; all of them by default.

    Returns:
        What changed, by the layer's name; layers without running statistics are not in it.

    Raises:
        InvalidArgumentError (a ValueError): no batch normalization layer, a weight that is negative or not finite, no
            rank with a weight above 0, or models that differ; nothing has changed.
        SynchronizationError (a RuntimeError): there is no process group, or a rank is gone; nothing has changed.

    Reference: Chan, Golub & LeVeque 1983; the law of total variance.
    """
    who = "reduce_statistics_"
    if weight is not None and not 0 <= weight < float("inf"):
        raise InvalidArgumentError(
            f"{who}: expected a finite weight >= 0, got {weight}. It is this rank's share of the data."
        )
    if not (dist.is_available() and dist.is_initialized()):
        raise SynchronizationError(f"{who}: no process group. Call torch.distributed.init_process_group first.")
    found = batch_norms(who, model)
    layers = {name: kept for name, layer in found.items() if (kept := _layer(who, name, layer, weight)) is not None}
    if not layers:
        return {}
    _check_same(who, layers, process_group)
    changes = _changes(who, layers, process_group)
    for name, layer in layers.items():
        layer.mean.copy_(changes[name].mean)
        layer.var.copy_(changes[name].var)
    return changes


def _layer(who: str, name: str, layer: nn.modules.batchnorm._BatchNorm, weight: float | None) -> _Layer | None:
    """None for a layer without running statistics."""
    mean, var, tracked = layer.running_mean, layer.running_var, layer.num_batches_tracked
    if mean is not None and var is None:
        raise InvalidArgumentError(
            f"{who}: expected running_mean and running_var, got {name!r} without the latter, as a whitening layer is: "
            "ranks cannot merge its covariance. Pass the part of the model that holds the other layers."
        )
    if mean is None or var is None:
        return None
    if weight is None and tracked is None:
        raise InvalidArgumentError(
            f"{who}: expected a layer that counts its batches, got {name!r} without num_batches_tracked. Pass weight=."
        )
    own = torch.tensor(weight) if weight is not None or tracked is None else tracked
    return _Layer(mean, var, own.to(mean.device, statistics_dtype(mean.device)))


def _changes(who: str, layers: dict[str, _Layer], group: dist.ProcessGroup | None) -> dict[str, Change]:
    """One exchange for all layers."""
    device = next(iter(layers.values())).mean.device
    wide = statistics_dtype(device)
    own = [torch.stack([weight.expand_as(mean), mean.to(wide), var.to(wide)]) for mean, var, weight in layers.values()]
    parts = _gathered(who, torch.cat([part.to(device) for part in own], 1), group)
    changes = {}
    widths = [layer.mean.shape[0] for layer in layers.values()]
    for name, (_, old_mean, old_var), found in zip(layers, own, parts.split(widths, 2), strict=True):
        weights, means, variances = found.unbind(1)
        if not (weights > 0).any(0).all():
            raise InvalidArgumentError(
                f"{who}: expected a rank with a weight above 0 for {name!r}, got none. Train first, or pass weight=."
            )
        changes[name] = Change(old_mean, old_var, *pool(weights, means, variances))
    return changes


def _check_same(who: str, layers: dict[str, _Layer], group: dist.ProcessGroup | None) -> None:
    """Raises InvalidArgumentError where the ranks' models differ, of which some backends die."""
    names = {name: layer.mean.shape[0] for name, layer in layers.items()}
    device = next(iter(layers.values())).mean.device
    digests = _gathered(who, torch.tensor([zlib.crc32(repr(names).encode())], device=device), group)
    if (digests != digests[0]).any():
        raise InvalidArgumentError(
            f"{who}: expected the same layers on every rank, got {names} on this one. Pass the same model, wrapped "
            "in DistributedDataParallel on all ranks or on none."
        )


def _gathered(who: str, own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """What every rank has, stacked."""
    with exchanging(who):
        found = own.new_empty(dist.get_world_size(group), *own.shape)
        dist.all_gather(list(found), own, group)
    return found
