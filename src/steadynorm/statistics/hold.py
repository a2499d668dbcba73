"""Forwards that normalize by the batch and leave the running statistics alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..walk import batch_norms


@contextmanager
def hold_statistics(model: nn.Module) -> Iterator[None]:
    """In the context, layers in train mode normalize by the batch, and their running statistics do not move.

    For forwards beside the training step: the second one of SAM, a discriminator's on generated images, an evaluation
    by batch statistics. Layers in eval mode are as always. torch's own layers are held too. `num_batches_tracked`
    stays, and so does everything when the context is left by an exception.

    Args:
        model: any model with batch normalization layers.

    Raises:
        InvalidArgumentError (a ValueError): there is none.

    Example::

        with sn.hold_statistics(model):
            model(perturbed).sum().backward()
    """
    layers = list(batch_norms("hold_statistics", model).values())
    before = [layer.track_running_stats for layer in layers]
    try:
        for layer in layers:
            layer.track_running_stats = False  # in train mode: take the batch's statistics, keep none
        yield
    finally:
        for layer, tracks in zip(layers, before, strict=True):
            layer.track_running_stats = tracks
