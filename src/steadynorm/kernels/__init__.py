"""The device-dependent part: six functions per device, and nothing else.

A backend is a module with these functions on canonical tensors: `x`, `dy` and `residual` are (G, N, C, L), where G
groups do not share statistics, N is the batch, C the channels and L the positions, in either memory order; `mean` and
`var` are (G, C) or (C,). With z = (x - mean) / sqrt(var + eps) * weight + bias + residual:

| function      | gives                                                                                |
|---------------|--------------------------------------------------------------------------------------|
| `moments`     | `Moments` of shape (G, C)                                                            |
| `normalize`   | y = activation(z), 0 where the mask is False                                         |
| `reduce_grad` | the sums of dz and of dz * xhat, (G, C)                                              |
| `input_grad`  | dx and dresidual from those sums and the count that shares them; or, without sums,   |
|               | from statistics that do not depend on x                                              |
| `forward`     | `moments` and `normalize` in one, for when nothing is merged in between              |
| `backward`    | `reduce_grad` and `input_grad` in one, likewise                                      |

`eager` is plain PyTorch: it serves every device and, being differentiable, every derivative beyond the first.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

ACTIVATIONS = ("relu", "leaky_relu", "silu", "gelu", "sigmoid", "tanh")
"""Activations a kernel can apply: torch's functions of these names with their default arguments."""


class Apply(NamedTuple):
    """What happens to a normalized value: everything but the data and its statistics.

    Attributes:
        weight: gamma, (C,) or (G, C); None for 1.
        bias: beta, likewise; None for 0.
        eps: added to the variance, at least 0.
        residual: added before the activation, shape of x, or None.
        mask: bool (G, N, 1, L), True where an element is real, or None.
        activation: one of `ACTIVATIONS`, or None.
        negative_slope: of leaky_relu.
    """

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    residual: Tensor | None = None
    mask: Tensor | None = None
    activation: str | None = None
    negative_slope: float = 0.01


class Gradients(NamedTuple):
    """What `backward` gives: dx and dresidual of x's shape, dweight and dbias (G, C), summed over N and L."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor
