"""Running statistics of several ranks become one: by counts, with the total variance."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import InvalidArgumentError, SynchronizationError
from ..moments import statistics_dtype
from ..walk import batch_norms


class Change(NamedTuple):
    """What a layer's running statistics were on this rank, and are now on all; each (C,) float64."""

    old_mean: Tensor
    old_var: Tensor
    mean: Tensor
    var: Tensor


@torch.no_grad()
def reduce_statistics_(
    model: nn.Module, *, weight: float | None = None, process_group: dist.ProcessGroup | None = None
) -> dict[str, Change]:
    r"""Gives every rank the running statistics of all ranks together.

    .. math:: \mu = \sum_r w_r \mu_r, \quad \sigma^2 = \sum_r w_r \bigl(\sigma_r^2 + (\mu_r - \mu)^2\bigr)

    In data-parallel training each rank's layers have seen its own data only; torch's `DistributedDataParallel` keeps
    those of rank 0, and a plain mean of variances forgets how far the means are apart. Call it on all ranks, before a
    checkpoint or an evaluation; torch's own layers take part too.

    Args:
        model: the same on every rank.
        weight: of this rank, such as the number of its examples; by default each layer's num_batches_tracked.
        process_group: the ranks; all of them by default.

    Returns:
        What changed, by the layer's name; layers without running statistics are not in it.

    Raises:
        InvalidArgumentError (a ValueError): no batch normalization layer, a negative weight, or no rank with a weight
            above 0; nothing has changed.
        SynchronizationError (a RuntimeError): there is no process group, or a rank is gone; nothing has changed.

    Reference: Chan, Golub & LeVeque 1983; the law of total variance.
    """
    who = "reduce_statistics_"
    if weight is not None and not weight >= 0:
        raise InvalidArgumentError(f"{who}: expected weight >= 0, got {weight}. It is this rank's share of the data.")
    if not (dist.is_available() and dist.is_initialized()):
        raise SynchronizationError(f"{who}: no process group. Call torch.distributed.init_process_group first.")
    layers = {name: layer for name, layer in batch_norms(who, model).items() if layer.running_mean is not None}
    changes = {name: _change(who, name, layer, weight, process_group) for name, layer in layers.items()}
    for name, change in changes.items():
        layer = layers[name]
        if layer.running_mean is not None and layer.running_var is not None:
            layer.running_mean.copy_(change.mean)
            layer.running_var.copy_(change.var)
    return changes


def _change(
    who: str,
    name: str,
    layer: nn.modules.batchnorm._BatchNorm,
    weight: float | None,
    group: dist.ProcessGroup | None,
) -> Change:
    mean, var, tracked = layer.running_mean, layer.running_var, layer.num_batches_tracked
    if mean is None or var is None or tracked is None:
        raise ValueError("expected a layer with running statistics")
    wide = statistics_dtype(mean.device)
    mean, var = mean.to(wide), var.to(wide)
    own = tracked.to(wide) if weight is None else torch.tensor(weight, dtype=wide, device=mean.device)
    weights, means, variances = _gathered(who, name, torch.stack([own.expand_as(mean), mean, var]), group).unbind(1)
    total = weights.sum(0)
    if not (total > 0).all():
        raise InvalidArgumentError(
            f"{who}: expected a rank with a weight above 0 for {name!r}, got none. Train first, or pass weight=."
        )
    share = weights / total
    merged = (share * means).sum(0)
    return Change(mean, var, merged, (share * (variances + (means - merged).square())).sum(0))


def _gathered(who: str, name: str, own: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """What every rank has, stacked."""
    found = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
    try:
        dist.all_gather(found, own, group)
    except RuntimeError as error:
        raise SynchronizationError(
            f"{who}: ranks could not exchange the statistics of {name!r}: {error}. Look for a rank that has ended, "
            "or a model that differs between ranks."
        ) from error
    return torch.stack(found)
