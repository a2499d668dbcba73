"""torch's own operator, where it is as fast and as exact: small tensors, and inference of a normalization alone.

In training it is as exact as ours for contiguous data unless a channel's mean is far above its standard deviation,
which is looked at each time; in inference, for any data. Its first two derivatives are right; where a graph of the
gradient is asked for, ours replaces it.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from ..kernels import Apply, Running, compiled, has_memory
from . import transforms_active
from .gradients import differentiable_backward

LARGEST = 1 << 17
"""Values up to which torch's operator is faster in training, where Python costs more than a kernel saves."""
LARGEST_EVALUATED = 1 << 21
"""The same in inference with an activation or a residual, which the caches then hold from one operator to the next."""


def batch_norm(x: Tensor, apply: Apply, running: Running) -> Tensor | None:
    """Normalizes by the batch, moves the running statistics; None, with nothing changed, where that is not for torch.

    Args:
        x: (N, C, *), more than one value a channel.
        apply: what happens to a normalized value.
        running: the running statistics; its momentum is a number.
    """
    if not (x.numel() <= LARGEST and x.is_contiguous() and _is_for_torch(x, running.mean, running.var, apply)):
        return None
    if running.mean is not None and running.mean.is_inference():
        return None
    weight, bias, eps, *_ = apply
    y, mean, invstd = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
    if mean.dtype is not torch.float32:  # statistics of 16-bit data without parameters
        return None
    if not compiled().accept(mean, invstd, running.mean, running.var, x.numel(), eps, float(running.momentum)):
        return None
    if y.grad_fn is not None:
        y.grad_fn.register_hook(partial(_replace, TensorWeakRef(x), weight, bias, eps))
    return _finish(y, apply)


def normalize(x: Tensor, mean: Tensor, var: Tensor, apply: Apply) -> Tensor | None:
    """Normalizes by running statistics (C,) where no gradient is wanted; None where that is not for torch."""
    weight, bias, eps, residual, _, activation, _ = apply
    if (residual is not None or activation is not None) and x.numel() > LARGEST_EVALUATED:
        return None
    if not _is_for_torch(x, mean, var, apply) or _wants_gradient(x, weight, bias, residual):
        return None
    if not compiled().accepts_running(mean, var, eps):
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
        x.numel() > 0
        and not transforms_active()
        and mask is None
        and (activation is None or activation == "relu")
        and x.dtype is not torch.float64
        and _is_plain(x)
        and (x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)))
        and (residual is None or (_is_plain(residual) and residual.stride() == x.stride()))
        and all(
            values is None or (values.dtype is torch.float32 and values.is_contiguous() and _is_plain(values))
            for values in (mean, var, weight, bias)
        )
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether it has memory that compiled code may write to."""
    return has_memory(tensor) and tensor.is_cpu


def _replace(
    saved: TensorWeakRef,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    gradients: tuple[Tensor | None, ...],
    outputs: tuple[Tensor, ...],
) -> tuple[Tensor | None, ...] | None:
    """Instead of torch's gradients, where a graph of them is asked for, ours.

    x is held by torch's own node, unless hooks pack what it saves; then torch's gradients stay, whose first two
    derivatives are right.
    """
    if not torch.is_grad_enabled() or outputs[0] is None or (x := saved()) is None:
        return None
    ours = differentiable_backward(outputs[0], x, Apply(weight, bias, eps))
    return tuple(None if theirs is None else own for theirs, own in zip(gradients, ours, strict=False))
