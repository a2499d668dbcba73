"""Small tensors: torch's own operator, where what Python costs exceeds what a kernel saves, and where it is exact.

torch's operator is as exact as ours for contiguous data unless a channel's mean is far above its standard deviation,
which is looked at each time. Its first two derivatives are right; where a graph of the gradient is asked for, ours
replaces it.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..kernels import Apply, Running, compiled, has_memory
from . import differentiable_backward

LARGEST = 1 << 17
"""Values up to which torch's operator is faster."""


def batch_norm(x: Tensor, apply: Apply, running: Running) -> Tensor | None:
    """Normalizes by the batch, moves the running statistics; None, with nothing changed, where that is not for torch.

    Args:
        x: (N, C, *), more than one value a channel.
        apply: what happens to a normalized value.
        running: the running statistics; its momentum is a number.
    """
    if not _is_for_torch(x, running.mean, running.var, apply):
        return None
    weight, bias, eps, *_ = apply
    y, mean, invstd = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
    if mean.dtype is not torch.float32:  # statistics of 16-bit data without parameters
        return None
    if not compiled().accepts(mean, invstd, running.mean, running.var, x.numel(), eps, float(running.momentum)):
        return None
    if y.grad_fn is not None:
        y.grad_fn.register_hook(partial(_replace, x, weight, bias, eps))
    return _finish(y, apply)


def normalize(x: Tensor, mean: Tensor, var: Tensor, apply: Apply) -> Tensor | None:
    """Normalizes by running statistics (C,) where no gradient is wanted; None where that is not for torch."""
    weight, bias, eps, *_ = apply
    if not _is_for_torch(x, mean, var, apply) or _wants_gradient(x, weight, bias, apply.residual):
        return None
    if not compiled().accepts(mean, var, None, None, 0, eps, 0.0):
        return None
    return _finish(torch.batch_norm(x, weight, bias, mean, var, False, 0.0, eps, False), apply)


def _finish(y: Tensor, apply: Apply) -> Tensor:
    """What follows the normalization, in place."""
    if apply.residual is not None:
        y = y.add_(apply.residual)
    return y if apply.activation is None else torch.relu_(y)


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _is_for_torch(x: Tensor, mean: Tensor | None, var: Tensor | None, apply: Apply) -> bool:
    """Whether its size, what goes with it, and all dtypes and memory are such that torch's operator is as good."""
    weight, bias, _, residual, mask, activation, _ = apply
    return (
        0 < x.numel() <= LARGEST
        and mask is None
        and (activation is None or activation == "relu")
        and x.dtype is not torch.float64
        and _is_plain(x)
        and (residual is None or _is_plain(residual))
        and all(
            values is None or (values.dtype is torch.float32 and _is_plain(values))
            for values in (mean, var, weight, bias)
        )
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether it lies contiguous in memory that compiled code may write to."""
    return has_memory(tensor) and tensor.is_cpu and tensor.is_contiguous() and not tensor.is_inference()


def _replace(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    gradients: tuple[Tensor | None, ...],
    outputs: tuple[Tensor, ...],
) -> tuple[Tensor | None, ...] | None:
    """Instead of torch's gradients, where a graph of them is asked for, ours."""
    if not torch.is_grad_enabled() or outputs[0] is None:
        return None
    ours = differentiable_backward(outputs[0], x, Apply(weight, bias, eps))
    return tuple(None if theirs is None else own for theirs, own in zip(gradients, ours, strict=False))
