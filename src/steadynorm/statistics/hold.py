"""Forwards that normalize by the batch and leave the running statistics alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn

from ..walk import batch_norms

_HELD: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()
"""How many contexts hold a layer, and whether it tracked statistics before the first."""


@contextmanager
def hold_statistics(model: nn.Module) -> Iterator[None]:
    """In the context, layers in train mode normalize by the batch, and their running statistics do not move.

    For forwards beside the training step: the second one of SAM, a discriminator's on generated images, an evaluation
    by batch statistics. Layers in eval mode are as always. torch's own layers are held too. `num_batches_tracked`
    stays, and so does everything when the context is left by an exception. Copies of the model made inside stay held.

    Args:
        model: any model with batch normalization layers.

    Raises:
        InvalidArgumentError (a ValueError): there is none.

    Example::

        with sn.hold_statistics(model):
            model(perturbed).sum().backward()
    """
    layers = list(batch_norms("hold_statistics", model).values())
    for layer in layers:
        holds, before = _HELD.get(layer, (0, layer.track_running_stats))
        _HELD[layer] = holds + 1, before
        layer.track_running_stats = False  # in train mode: take the batch's statistics, keep none
    try:
        yield
    finally:
        for layer in layers:
            holds, before = _HELD.pop(layer)
            if holds > 1:
                _HELD[layer] = holds - 1, before
            else:
                layer.track_running_stats = before
