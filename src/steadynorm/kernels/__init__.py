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

`eager` is plain PyTorch: it serves every device and, being differentiable, every derivative beyond the first. The
compiled core serves CPU tensors. It may be missing, and has more functions, the last three for a training step of one
group:

- `takes(x, residual, weight, bias, mean, var)` → whether all of these fit and need not be copied, None standing for
  what is not there: one question instead of many checks. No says nothing of why.
- `train(x, apply, running)` → y; `kept`, what it keeps of the moments; `signs`; and the `Outcome`. It also moves the
  running statistics of a `Running` that moves and has them, and may count the batch. `signs` keeps, one bit a value,
  where a piecewise linear activation after a residual has slope 1, to be saved instead of the residual; else None.
- `train_backward(dy, x, kept, apply, signs, wants_dx)` → dx, dweight, dbias and dresidual, None for what is not
  there. With signs the residual of `apply` is None, and is not needed.
- `unpack_signs(signs, x, mask)` → bool, of x's shape and memory order.
"""

from __future__ import annotations

from functools import lru_cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..torch_internals import in_graph

ACTIVATIONS = ("relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "sigmoid", "tanh")
"""Activations a kernel can apply: torch's functions of these names with their default arguments."""
COMPILED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Dtypes that the compiled core knows, and torch's own operator."""


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


def serving(x: Tensor, apply: Apply | None = None, *others: Tensor | None) -> ModuleType:
    """The backend of the six functions that serves x and what goes with it."""
    residual, mask, activation = (None,) * 3 if apply is None else (apply.residual, apply.mask, apply.activation)
    core = core_for(x, activation) if has_memory(x, residual, mask, *others) else None
    if core is not None:
        return core
    from . import eager

    return eager


def core_for(x: Tensor, activation: str | None) -> ModuleType | None:
    """The compiled core, where it is there and serves data like x, which has memory."""
    if not x.is_cpu or x.dtype not in COMPILED or x.numel() == 0:
        return None
    return compiled()


@lru_cache
def compiled() -> ModuleType | None:
    """The compiled core, imported when it is first needed; None where it is not there."""
    try:
        from . import cpu
    except ImportError:
        return None
    return cpu


def has_memory(*tensors: Tensor | None) -> bool:
    """Whether all are None or ordinary tensors, none of them one that a transformation such as vmap traces with."""
    try:
        for tensor in tensors:
            if tensor is not None:
                if type(tensor) not in _ORDINARY:
                    return False
                tensor.data_ptr()
    except RuntimeError:
        return False
    return True


_ORDINARY = (Tensor, torch.nn.Parameter)


def readable(tensor: Tensor) -> bool:
    """Whether its values can be looked at now: no compiler records, and no accelerator has to be waited for."""
    return not in_graph() and tensor.is_cpu and has_memory(tensor)
