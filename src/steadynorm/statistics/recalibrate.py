"""Population statistics from data, for every batch normalization layer of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch.distributed as dist
from torch import nn

from .measure import Wanted, settle_
from .shifts import Shifts


def recalibrate_(
    model: nn.Module,
    data: Iterable[Any],
    *,
    call: Callable[[nn.Module, Any], object] | None = None,
    batches: int | None = None,
    estimator: str = "pooled",
    sequential: bool = False,
    tolerance: float | None = None,
    unreached: str = "raise",
    process_group: dist.ProcessGroup | None = None,
) -> Shifts:
    r"""Gives every layer the mean and variance of all values that reach it, over all of the data.

    .. math:: \mu = \frac{1}{n} \sum_b n_b \mu_b, \quad
        \sigma^2 = \frac{1}{n - 1} \sum_b \bigl(m_{2,b} + n_b (\mu_b - \mu)^2\bigr)

    After training, running statistics are an average over the last batches, by weights that have since moved; after
    averaging, pruning or merging weights they are another network's. Here the moments (n_b, mu_b, m_2,b) of batches are
    merged in float64, weighted by their real elements, so that batches may be of any size. Everything is in eval mode:
    dropout is off. Layers of torch's and ours take part, except those without running statistics, which have nothing to
    set, and `FrozenBatchNorm`. A layer that is used several times is measured over all its calls. Subclasses with a
    forward of their own, such as timm's, take part if that normalizes dimension 1 of what it is given.

    All layers are measured at once, each normalizing by its batch (the whole of this rank's) as in training, so that
    what deeper layers see depends on how the data are batched. A batch with too few values for that (one a channel; for
    whitening, group_size) goes by all that this call of the layer was given so far, and only where that is too little,
    as in a first batch, by the old statistics.

    With `sequential` the layers are measured one after the other, each over all its calls and behind layers that have
    their final statistics: what eval mode will see, whatever the batches. Layers that may be behind themselves, being
    called several times in a forward, and those around them are measured again until nothing moves, to 1e-5 standard
    deviations (1e-10 in float64) and what the layer's dtype can tell.

    On any error the model is as before, bit by bit. Afterwards `num_batches_tracked` is the number of batches, as after
    `torch.optim.swa_utils.update_bn` (of a `BatchRenorm` it stays: its schedule goes by it). Over several ranks all
    get the statistics of all ranks' data, of which a rank may have any number of batches, also none; they exchange once
    a pass. `DistributedDataParallel` is looked through.

    Args:
        model: any model with batch normalization layers. Compiled ones run without their compiled code.
        data: batches, such as a DataLoader or a list; read once, and with `sequential` once more each time that a layer
            is measured. For a progress bar, wrap it: ``recalibrate_(model, tqdm(loader))``.
        call: does the forward of a batch, which it is given as it is; by default a tensor goes into the model, the
            first entry of a tuple or list, or a mapping as keyword arguments, on the model's device.
        batches: how many to read, at least 1; None for all.
        estimator: "pooled", as above; or "paper", Ioffe & Szegedy's, the average of the batches' unbiased variances,
            weighted by their n_b - 1, which leaves out how far the batches' means are apart.
        sequential: measure layer after layer. It takes as many passes as there are layers, each up to that layer, and
            one before; of layers that are called several times in a forward, two or more each, of whole forwards. The
            data must be the same in each pass, in any order: no random augmentation, and no `batches` or `tolerance`
            with a loader that shuffles, which would give other examples each time.
        tolerance: stop reading when doubling the data, from at least 2 batches, moved no mean by so many standard
            deviations and no standard deviation by that factor; a number above 0, such as 0.01. Looked at are the
            "pooled" statistics, whatever `estimator` is. With `sequential` the first pass decides for all, with several
            ranks each for itself.
        unreached: what to do about layers that no batch reaches: "raise", or "keep" what they have.
        process_group: the ranks whose data count; all of them by default, if torch.distributed is initialized.

    Returns:
        `Shift` by the layer's name: old and new statistics and how far the mean went in standard deviations. Printed,
        it is a table.

    Raises:
        InvalidArgumentError (a ValueError): no batch normalization layer; no data, or a single batch for data; an
            iterator with `sequential`, or fewer batches in a later pass; a setting out of its range; models or settings
            that differ between ranks; inside `weigh_examples`.
        ModelError (a ValueError): layers that no batch reaches, or whose values are too few, inf or nan, or whose own
            forward normalizes something else than what it is given; no running statistics; a lazy module that has not
            been run; with `sequential`, layers that still move the hundredth time.
        SynchronizationError (a RuntimeError): another rank raised an error, or is gone.

    Example::

        print(sn.recalibrate_(model, loader))

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, Alg. 2; Wu & Johnson 2021, arXiv:2105.07576, sec. 3; Chan,
    Golub & LeVeque 1983 for the merge.
    """
    wanted = Wanted("recalibrate_", data, call, batches, estimator, sequential, tolerance, unreached, process_group)
    return settle_(model, wanted)
