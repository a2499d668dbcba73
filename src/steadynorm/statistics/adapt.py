"""Statistics of the domain a model is used in, instead of the one it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch.distributed as dist
from torch import nn

from ..errors import InvalidArgumentError
from .measure import Wanted, settle_
from .shifts import Shifts


def adapt_(
    model: nn.Module,
    target_data: Iterable[Any],
    *,
    weight: float = 1.0,
    call: Callable[[nn.Module, Any], object] | None = None,
    batches: int | None = None,
    sequential: bool = False,
    unreached: str = "raise",
    process_group: dist.ProcessGroup | None = None,
) -> Shifts:
    r"""Moves every layer's running statistics to those of unlabelled data of another domain.

    .. math:: \mu = w \mu_t + (1 - w) \mu_s, \quad \sigma^2 = w \sigma_t^2 + (1 - w) \sigma_s^2

    mu_t and sigma_t² are measured as `recalibrate_` does; mu_s and sigma_s² are the running statistics so far. The mix
    is between two estimates for one domain, the target's, of which the source's is the steadier where target data are
    few; so distances between the two means do not count. Statistics of data that are a mixture of both domains are
    another thing: the law of total variance.

    Args:
        model: any trained model with batch normalization layers.
        target_data: batches of the target domain, without labels or with them; otherwise as in `recalibrate_`.
        weight: w, of the target, in (0, 1]; 1 forgets the source. With n target examples and a source that counts as N
            of them, w = n / (N + n).
        call, batches, unreached, process_group: as in `recalibrate_`.
        sequential: as there, and recommended for a weight below 1: with it the layers in front have the mix already, as
            they will in use. Without it deeper layers are measured behind layers that normalize by the target's
            statistics alone, and then run behind the mix, for which theirs are not the right ones.

    Returns:
        As `recalibrate_`; a large shift says where the domains differ.

    Raises:
        InvalidArgumentError (a ValueError): a weight outside (0, 1]; the rest as `recalibrate_`.
        ModelError (a ValueError), SynchronizationError (a RuntimeError): as there; and old statistics that are inf or
            nan with a weight below 1. The model is as before.

    Example::

        sn.adapt_(model, night_images, weight=0.8, sequential=True)

    Reference: Li, Wang, Shi, Liu & Hou 2016, arXiv:1603.04779 (AdaBN, w = 1); Schneider, Rusak, Eck, Bringmann,
    Brendel & Bethge 2020, arXiv:2006.16971, sec. 3 (the mix).
    """
    who = "adapt_"
    if not 0 < weight <= 1:
        raise InvalidArgumentError(
            f"{who}: expected a weight in (0, 1], got {weight}. It is the target's: 1 forgets the source."
        )
    wanted = Wanted(who, target_data, call, batches, "pooled", sequential, None, unreached, process_group, weight)
    return settle_(model, wanted)
