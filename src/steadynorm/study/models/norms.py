"""Normalizations of convolutions by name, and CNNs that differ in nothing else."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from ...errors import InvalidArgumentError
from ...nn import BatchNorm2d, BatchRenorm2d, GhostBatchNorm2d, Ramp
from .systems import he

Norm = Callable[[int], nn.Module]
"""Makes the normalization of a layer with so many channels."""

NORMS = ("none", "batch", "ghost", "renorm", "group", "layer", "instance")
GROUPS = 8
"""Of group normalization; its paper's 32 would be instance normalization for 32 channels."""
GHOST = 16
"""Examples of a ghost batch."""


def normalization(name: str, steps: int = 1) -> Norm:
    """The normalization of that name, each with a learned weight and bias a channel, eps 1e-5 and torch's momentum 0.1.

    Args:
        name: one of `NORMS`. "layer" takes mean and variance over all channels and positions of an example, "instance"
            over the positions of each channel, "group" over those of a group of channels; "ghost" over 16 examples.
        steps: of the training, for the schedule of "renorm": the paper's, shortened to end at half of them.
    """
    groups: dict[str, Callable[[int], int]] = {
        "layer": lambda channels: 1,
        "group": lambda channels: GROUPS,
        "instance": lambda channels: channels,
    }
    if name in groups:
        return lambda channels: nn.GroupNorm(groups[name](channels), channels)
    others: dict[str, Norm] = {
        "none": lambda channels: nn.Identity(),
        "batch": BatchNorm2d,
        "ghost": lambda channels: GhostBatchNorm2d(channels, GHOST),
        "renorm": lambda channels: BatchRenorm2d(
            channels,
            rmax=Ramp(1.0, 3.0, steps // 16, steps // 2),
            dmax=Ramp(0.0, 5.0, steps // 16, steps * 5 // 16),
        ),
    }
    if name not in others:
        raise InvalidArgumentError(f"normalization: expected one of {', '.join(NORMS)}, got {name!r}.")
    return others[name]


def normalized_cnn(channels: int, size: int, classes: int, norm: Norm) -> nn.Sequential:
    """The CNN of `models.cnn` with each convolution normalized before its ReLU, and the dense layer not.

    A dense layer has no positions, so there is nothing that instance normalization could normalize it by. He
    initialization.
    """
    flat = 64 * (((size - 2) // 2 - 2) // 2 - 2) ** 2
    model = nn.Sequential(
        *(nn.Conv2d(channels, 32, 3), norm(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3), norm(64), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3), norm(64), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(flat, 64), nn.ReLU(), nn.Linear(64, classes)),
    )
    return he(model)


def slim_cnn(channels: int, size: int, classes: int, norm: Norm) -> nn.Sequential:
    """`normalized_cnn` with 16, 32 and 32 channels and no hidden dense layer, for batches of one, which are many steps.

    At 28x28 the last convolution gives 3x3 positions, so a batch of one has 9 values a channel there: as in the last
    stage of deep networks, few.
    """
    flat = 32 * (((size - 2) // 2 - 2) // 2 - 2) ** 2
    model = nn.Sequential(
        *(nn.Conv2d(channels, 16, 3), norm(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3), norm(32), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 32, 3), norm(32), nn.ReLU(), nn.Flatten()),
        nn.Linear(flat, classes),
    )
    return he(model)
