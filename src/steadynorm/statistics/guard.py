"""Batches whose moments are not finite stay out of the running statistics."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from ..errors import InvalidArgumentError, NonFiniteStatisticsWarning
from ..walk import own_batch_norms


class Guard:
    """What a guard kept out.

    Attributes:
        kept_out: how many batches, by the layer's name in the model; layers without any are not in it.
    """

    def __init__(self, names: dict[nn.Module, str]) -> None:
        self._names = names
        self.kept_out: dict[str, int] = {}

    def __call__(self, layer: nn.Module) -> None:
        name = self._names[layer]
        self.kept_out[name] = self.kept_out.get(name, 0) + 1
        if self.kept_out[name] == 1:
            warnings.warn(
                f"guard_statistics: a batch at {name!r} has a mean or variance that is not finite. It is kept out of "
                "the running statistics, as all such batches will be; the guard's kept_out counts them.",
                NonFiniteStatisticsWarning,
                stacklevel=6,
            )


@contextmanager
def guard_statistics(model: nn.Module) -> Iterator[Guard]:
    """In the context, a batch with an infinite or nan mean or variance does not enter the running statistics.

    It is counted, and the first one of each layer is reported by the layer's name. Everything else is as always: the
    batch's output is what it is, so that a gradient scaler sees the overflow and skips its step. On accelerators
    nothing is counted, as that would wait for them; the statistics are guarded all the same.

    Args:
        model: any model; its layers that are not steadynorm's are refused.

    Raises:
        InvalidArgumentError (a ValueError): no batch normalization layer, or one of torch's own.

    Example::

        with sn.guard_statistics(model) as guard:
            train(model)
        print(guard.kept_out)  # {"layer3.1.bn2": 2}
    """
    who = "guard_statistics"
    layers = own_batch_norms(who, model)
    for name, layer in layers.items():
        if layer._guard is not None:
            raise InvalidArgumentError(f"{who}: {name!r} is guarded already. Leave the other context first.")
    guard = Guard({layer: name for name, layer in layers.items()})
    try:
        for layer in layers.values():
            layer._guard = guard  # type: ignore[assignment]
        yield guard
    finally:
        for layer in layers.values():
            del layer._guard
