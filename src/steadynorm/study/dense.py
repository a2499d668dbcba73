"""Dense networks of any depth, and initial weights of a chosen scale."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from ..nn import BatchNorm1d
from ..records import Cell
from .data import ImageData
from .models import cnn

_ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}


def dense(
    inputs: int,
    width: int,
    depth: int,
    classes: int,
    *,
    batch_norm: bool,
    activation: str = "relu",
    dropout: float = 0.0,
) -> nn.Sequential:
    """Flatten, then `depth` times Linear(width)-[BN]-activation-[Dropout], then Linear(classes).

    With or without batch normalization or dropout, the same random seed gives the same initial weights; the biases
    before a normalization are redundant, and kept so that both networks have them.

    Args:
        inputs: values of an example.
        width: units of each hidden layer.
        depth: hidden layers, at least 1.
        classes: number of outputs.
        batch_norm: put batch normalization before each activation.
        activation: "relu" or "sigmoid".
        dropout: probability that an activation is dropped, in [0, 1); 0 for no such layers.
    """
    layers: list[nn.Module] = [nn.Flatten()]
    for number in range(depth):
        layers.append(nn.Linear(width if number else inputs, width))
        layers.append(BatchNorm1d(width, activation=activation) if batch_norm else _ACTIVATIONS[activation]())
        if dropout:
            layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers, nn.Linear(width, classes))


def weights(model: nn.Module) -> list[nn.Parameter]:
    """The weights of linear and convolution layers, from the input to the output."""
    return [layer.get_parameter("weight") for layer in model.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


@torch.no_grad()
def initialize(model: nn.Module, gain: float = math.sqrt(2)) -> None:
    """Draws weights from a normal distribution of standard deviation gain / sqrt(fan-in), and sets biases to 0.

    The gain sqrt(2) is He's, for ReLU.

    Reference: He et al. 2015, arXiv:1502.01852, sec. 2.2.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight.normal_(0, gain / math.sqrt(layer.weight[0].numel()))
            if layer.bias is not None:
                layer.bias.zero_()


def network(cell: Cell, data: ImageData, *, batch_norm: bool) -> nn.Sequential:
    """The network that a cell's setting "architecture" names, for the images of `data`.

    "cnn" is `models.cnn`; "dense" is `dense` of the settings "width" and "depth" and, where there are any, of the
    factors "depth", "activation" and "dropout".
    """
    given: dict[str, Any] = {**cell.settings, **cell.factors}
    channels, size = data.train.images.shape[1:3]
    if given["architecture"] == "cnn":
        return cnn(channels, size, data.classes, batch_norm=batch_norm)
    others = {name: given[name] for name in ("activation", "dropout") if name in given}
    inputs = channels * size**2
    return dense(inputs, given["width"], given["depth"], data.classes, batch_norm=batch_norm, **others)
