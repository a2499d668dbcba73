"""The networks of the studies."""

from __future__ import annotations

from torch import nn

from ...nn import BatchNorm1d, BatchNorm2d


def cnn(channels: int, size: int, classes: int, *, batch_norm: bool) -> nn.Sequential:
    """The small CNN of many tutorials, about 93,000 parameters at 28x28.

    Conv(32)-[BN]-ReLU-MaxPool, Conv(64)-[BN]-ReLU-MaxPool, Conv(64)-[BN]-ReLU, Flatten, Dense(64)-[BN]-ReLU,
    Dense(classes). With or without batch normalization, the same random seed gives the same initial weights; the
    biases before a normalization are redundant, and kept so that both networks have them.

    Args:
        channels: of the input images.
        size: height and width of the input images, at least 18.
        classes: number of outputs.
        batch_norm: put batch normalization before each ReLU.
    """

    def block(layer: nn.Module, width: int) -> list[nn.Module]:
        if not batch_norm:
            return [layer, nn.ReLU()]
        norm = BatchNorm2d if isinstance(layer, nn.Conv2d) else BatchNorm1d
        return [layer, norm(width, activation="relu")]

    flat = 64 * (((size - 2) // 2 - 2) // 2 - 2) ** 2
    return nn.Sequential(
        *block(nn.Conv2d(channels, 32, 3), 32),
        nn.MaxPool2d(2),
        *block(nn.Conv2d(32, 64, 3), 64),
        nn.MaxPool2d(2),
        *block(nn.Conv2d(64, 64, 3), 64),
        nn.Flatten(),
        *block(nn.Linear(flat, 64), 64),
        nn.Linear(64, classes),
    )
