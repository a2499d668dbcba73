"""Ordinary CPU tensors in training: one call of compiled code each way, which moves the running statistics too.

What Python does for a layer, with cold caches in the midst of a network, costs more than the arithmetic of a
medium-sized tensor; so this route has one autograd function of one output, and no operator.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import COMPILED, Apply, Running, compiled, has_memory
from . import transforms_active
from .gradients import changes_dresidual, differentiable_backward


def batch_norm(x: Tensor, apply: Apply, running: Running) -> Tensor | None:
    """Normalizes by the batch, moves the running statistics; None, with nothing changed, where that is not for it.

    Args:
        x: (N, C, *), dense, more than one value a channel.
        apply: what happens to a normalized value.
        running: the running statistics; its momentum is a number.
    """
    if not _serves(x, running.mean, running.var, apply):
        return None
    weight, bias, _, residual, *_ = apply
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias, residual)):
        if x.is_inference():  # which autograd refuses to save, and will say so before anything has moved
            return None
        return _BatchNorm.apply(x, *apply, running)
    return compiled().train(x, apply, running)[0]


def _serves(x: Tensor, mean: Tensor | None, var: Tensor | None, apply: Apply) -> bool:
    weight, bias, _, residual, mask, *_ = apply
    return (
        x.is_cpu
        and x.dtype in COMPILED
        and x.numel() > 0
        and not transforms_active()
        and all(map(has_memory, (x, weight, bias, residual, mask)))
        and (mean is None or var is None or (mean.dtype == var.dtype and _can_move(mean) and _can_move(var)))
    )


def _can_move(running: Tensor) -> bool:
    return (
        has_memory(running)
        and running.is_cpu
        and running.is_contiguous()
        and running.dtype in COMPILED
        and not running.requires_grad
        and not running.is_inference()
    )


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        residual: Tensor | None,
        mask: Tensor | None,
        activation: str | None,
        negative_slope: float,
        running: Running,
    ) -> Tensor:
        apply = Apply(weight, bias, eps, residual, mask, activation, negative_slope)
        y, statistics = compiled().train(x, apply, running)
        ctx.settings = eps, activation, negative_slope
        ctx.has_residual, changes = residual is not None, changes_dresidual(apply)
        ctx.save_for_backward(x, statistics, weight, bias, residual if changes else None, mask)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grad_outputs
        x, statistics, weight, bias, residual, mask = ctx.saved_tensors
        eps, activation, negative_slope = ctx.settings
        apply = Apply(weight, bias, eps, residual, mask, activation, negative_slope)
        if torch.is_grad_enabled() or not has_memory(dy):
            dx, dweight, dbias, dresidual = differentiable_backward(dy, x, apply)
        else:
            wants_dx = ctx.needs_input_grad[0]
            dx, dweight, dbias, dresidual = compiled().train_backward(dy, x, statistics, apply, wants_dx)
        if ctx.has_residual and residual is None:
            dresidual = dy
        return dx, dweight, dbias, None, dresidual, *(None,) * 4
