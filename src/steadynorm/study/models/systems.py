"""The networks that introductions to batch normalization show, each with and without it.

The same random seed gives the same initial weights whether normalized or not; the biases before a normalization are
redundant, and kept so that all variants have them.
"""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from ...nn import BatchNorm1d, BatchNorm2d

PLACES = ("before", "after", "none")


def placed_cnn(channels: int, size: int, classes: int, place: str) -> nn.Sequential:
    """Conv(32,3x3)-ReLU-MaxPool, Conv(64,3x3)-ReLU-MaxPool, Flatten, Dense(64)-ReLU, Dense(classes); He initialization.

    Args:
        channels: of the input images.
        size: height and width of the input images, at least 10.
        classes: number of outputs.
        place: of batch normalization, "before" each convolution's ReLU, "after" it (and before the pooling), or "none".
    """

    def block(inputs: int, width: int) -> list[nn.Module]:
        layers: dict[str, list[nn.Module]] = {
            "before": [BatchNorm2d(width, activation="relu")],
            "after": [nn.ReLU(), BatchNorm2d(width)],
            "none": [nn.ReLU()],
        }
        return [nn.Conv2d(inputs, width, 3), *layers[place], nn.MaxPool2d(2)]

    flat = 64 * (((size - 2) // 2 - 2) // 2) ** 2
    last = [nn.Flatten(), nn.Linear(flat, 64), nn.ReLU(), nn.Linear(64, classes)]
    return he(nn.Sequential(*block(channels, 32), *block(32, 64), *last))


def conv1d_net(*, batch_norm: bool) -> nn.Sequential:
    """Conv1d(3→16)-[BN]-ReLU, Conv1d(16→32)-[BN]-ReLU, Linear(32·28→10); (N, 3, 28), kernel 3, padding 1, He init."""
    return he(
        nn.Sequential(
            *(nn.Conv1d(3, 16, 3, padding=1), *_relu1d(16, batch_norm)),
            *(nn.Conv1d(16, 32, 3, padding=1), *_relu1d(32, batch_norm)),
            *(nn.Flatten(), nn.Linear(32 * 28, 10)),
        )
    )


def conv2d_net(*, batch_norm: bool) -> nn.Sequential:
    """Conv2d(3→16)-[BN]-ReLU, Conv2d(16→32)-[BN]-ReLU, Linear(32·28·28→10); (N, 3, 28, 28), else as `conv1d_net`."""
    return he(
        nn.Sequential(
            *(nn.Conv2d(3, 16, 3, padding=1), *_relu2d(16, batch_norm)),
            *(nn.Conv2d(16, 32, 3, padding=1), *_relu2d(32, batch_norm)),
            *(nn.Flatten(), nn.Linear(32 * 28 * 28, 10)),
        )
    )


def sigmoid_net(size: int, classes: int, std: float, *, batch_norm: bool) -> nn.Sequential:
    """The paper's network of sec. 4.1: three hidden layers of 100 sigmoids, Gaussian weights, biases 0.

    Args:
        size: height and width of the images, of one channel.
        classes: number of outputs.
        std: standard deviation of the initial weights.
        batch_norm: put batch normalization before each sigmoid.
    """
    widths = [size * size, 100, 100, 100]
    hidden: list[nn.Module] = []
    for inputs, width in pairwise(widths):
        hidden += [nn.Linear(inputs, width), *([BatchNorm1d(width)] if batch_norm else []), nn.Sigmoid()]
    model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(100, classes))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)
    return model


def he(model: nn.Sequential) -> nn.Sequential:
    """Draws the initial weights of all convolutions and linear layers as He et al. 2015 for ReLU; biases 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)  # type: ignore[arg-type]
    return model


def _relu1d(width: int, batch_norm: bool) -> list[nn.Module]:
    return [BatchNorm1d(width, activation="relu")] if batch_norm else [nn.ReLU()]


def _relu2d(width: int, batch_norm: bool) -> list[nn.Module]:
    return [BatchNorm2d(width, activation="relu")] if batch_norm else [nn.ReLU()]
