"""A small Inception, for images of about 30 pixels: the paper's modules, with and without batch normalization."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...nn import BatchNorm2d


class Paths(nn.ModuleList):
    """Several paths from one input, whose outputs become one by channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([path(x) for path in self], 1)


class Inception(nn.Sequential):
    """A stem of half the size, two Inception modules with a halving between, averages over positions, a classifier.

    As in the network that the paper normalized, 5x5 convolutions are two of 3x3; 20 convolutions in all. Weights are
    drawn as He et al. 2015 for ReLU and as Glorot & Bengio 2010 for sigmoids; biases are 0. The
    same random seed gives the same weights with and without batch normalization, before which biases are redundant.

    Args:
        channels: of the input images.
        classes: number of outputs.
        width: channels of the narrow paths.
        batch_norm: put batch normalization before each nonlinearity.
        sigmoid: sigmoids for ReLUs.
        dropout: share of the classifier's inputs that training drops.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        width: int,
        *,
        batch_norm: bool,
        sigmoid: bool = False,
        dropout: float = 0.0,
    ) -> None:
        def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> list[nn.Module]:
            layer = nn.Conv2d(inputs, outputs, size, stride, size // 2)
            if sigmoid:
                return [layer, *([BatchNorm2d(outputs)] if batch_norm else []), nn.Sigmoid()]
            return [layer, BatchNorm2d(outputs, activation="relu") if batch_norm else nn.ReLU()]

        def module(inputs: int, w: int) -> Paths:
            """5w channels, of the same size."""
            return Paths(
                [
                    nn.Sequential(*conv(inputs, w, 1)),
                    nn.Sequential(*conv(inputs, w, 1), *conv(w, 2 * w, 3)),
                    nn.Sequential(*conv(inputs, w, 1), *conv(w, w, 3), *conv(w, w, 3)),
                    nn.Sequential(nn.AvgPool2d(3, 1, 1), *conv(inputs, w, 1)),
                ]
            )

        def halving(inputs: int, w: int) -> Paths:
            """Inputs + 4w channels, of half the size."""
            return Paths(
                [
                    nn.Sequential(*conv(inputs, w, 1), *conv(w, 2 * w, 3, 2)),
                    nn.Sequential(*conv(inputs, w, 1), *conv(w, w, 3), *conv(w, 2 * w, 3, 2)),
                    nn.MaxPool2d(3, 2, 1),
                ]
            )

        super().__init__(
            *conv(channels, 2 * width, 3, 2),
            *(module(2 * width, width), halving(5 * width, width), module(9 * width, 2 * width)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(10 * width, classes)),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                if sigmoid:
                    nn.init.xavier_normal_(layer.weight)
                else:
                    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
