"""The device-dependent part: six functions per device, and nothing else.

A backend is a module with these functions. `x`, `dy` and `residual` are (groups * N, C, *), dense in either memory
order; the groups, which are 1 unless given, do not share statistics; `mean` and `var` are (groups, C) or (C,). With
z = (x - mean) / sqrt(var + eps) * weight + bias + residual:

| function      | gives                                                                                |
|---------------|--------------------------------------------------------------------------------------|
| `moments`     | `Moments` of shape (groups, C)                                                       |
| `normalize`   | y = activation(z), 0 where the mask is False                                         |
| `reduce_grad` | the sums of dz and of dz * xhat, (groups, C)                                         |
| `input_grad`  | dx and dresidual (None for no residual) from those sums and the count that shares    |
|               | them; or, without sums, from statistics that do not depend on x                      |
| `forward`     | `moments` and `normalize` in one, for when nothing is merged in between              |
| `backward`    | `reduce_grad` and `input_grad` in one, likewise                                      |

`numba_cpu` is compiled code for CPU tensors. `eager` is plain PyTorch: it serves every other device and, being
differentiable, every derivative beyond the first.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..moments import Moments

ACTIVATIONS = ("relu", "leaky_relu", "silu", "gelu", "sigmoid", "tanh")
"""Activations a kernel can apply: torch's functions of these names with their default arguments."""
COMPILED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Dtypes that compiled kernels know."""


class Apply(NamedTuple):
    """What happens to a normalized value: everything but the data and its statistics.

    Attributes:
        weight: gamma, (C,) or (groups, C); None for 1.
        bias: beta, likewise; None for 0.
        eps: added to the variance, at least 0.
        residual: added before the activation, shape of x, or None.
        mask: bool (groups * N, 1, *), True where an element is real, or None.
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
    """What `backward` gives: dx and dresidual (None for no residual) of x's shape, dweight and dbias (groups, C)."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor | None


@dataclass
class Running:
    """What a training step does beside normalizing: running statistics that move, and what it found.

    Attributes:
        mean: running mean (C,), or None.
        var: running variance (C,), or None; both move towards the batch's, or neither.
        momentum: weight of the batch in them, in [0, 1]; a number or a 0-d tensor.
        moves: whether they move.
        guarded: they stay where the batch's mean or variance is not finite.
        collects: `batch` is wanted, instead of moving them.
        untouched: set where the batch has one value a channel, and the running statistics normalized it.
        finite: whether the batch's moments were finite; set by whoever moves the statistics, True where nobody looked.
        batch: the batch's moments (1, C), set where they are wanted.
    """

    mean: Tensor | None = None
    var: Tensor | None = None
    momentum: float | Tensor = 0.1
    moves: bool = True
    guarded: bool = False
    collects: bool = False
    untouched: bool = False
    finite: bool = True
    batch: Moments | None = None


def serving(x: Tensor, *others: Tensor | None) -> ModuleType:
    """The backend that serves x and what goes with it."""
    if x.device.type == "cpu" and x.dtype in COMPILED and x.numel() > 0 and all(map(has_memory, (x, *others))):
        return compiled()
    from . import eager

    return eager


@lru_cache
def compiled() -> ModuleType:
    """The backend of compiled kernels, which brings numba: imported when it is first needed."""
    from . import numba_cpu

    return numba_cpu


def has_memory(tensor: Tensor | None) -> bool:
    """Whether it is None or an ordinary tensor, not one that a transformation such as vmap traces with."""
    if tensor is None:
        return True
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True
