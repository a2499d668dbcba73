"""Batch renormalization: the batch's moments are known before, and what is left is one pass each way.

For ordinary tensors. Where something else than torch's autograd follows what is computed, it is batch normalization
with another weight and bias, which measures once more.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import Apply, eager, has_memory, serving
from ..moments import Moments
from . import batch_norm
from .gradients import changes_dresidual, differentiable_backward
from .routes import KERNELS, choose


def batch_renorm(x: Tensor, apply: Apply, batch: Moments, r: Tensor, d: Tensor) -> Tensor:
    """activation((xhat * r + d) * weight + bias + residual), with xhat normalized by the batch.

    Args:
        x: (N, C, *), dense.
        apply: what happens to a corrected value.
        batch: the moments of x, (1, C); gradients go through them.
        r: (C,), a constant.
        d: (C,), likewise.
    """
    route, core, differentiated = choose(x, apply)
    if route != KERNELS:
        return batch_norm(x, corrected(apply, r, d))[0]
    if not differentiated:
        return (core or eager).normalize(x, batch.mean, batch.var, corrected(apply, r, d))
    weight, bias, eps, residual, mask, activation, negative_slope = apply
    settings = (eps, mask, activation, negative_slope)
    return _BatchRenorm.apply(x, weight, bias, residual, settings, batch, r, d)


def corrected(apply: Apply, r: Tensor, d: Tensor) -> Apply:
    """(xhat * r + d) * weight + bias as one affine map of xhat."""
    weight, bias = (r, d) if apply.weight is None else (apply.weight * r, apply.weight * d)
    return apply._replace(weight=weight, bias=bias if apply.bias is None else apply.bias + bias)


class _BatchRenorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        settings: tuple[float, Tensor | None, str | None, float],
        batch: Moments,
        r: Tensor,
        d: Tensor,
    ) -> Tensor:
        eps, mask, activation, negative_slope = settings
        apply, var = Apply(weight, bias, eps, residual, mask, activation, negative_slope), batch.var
        y = serving(x, apply).normalize(x, batch.mean, var, corrected(apply, r, d))
        ctx.settings = eps, activation, negative_slope
        ctx.has_residual = residual is not None
        residual = residual if changes_dresidual(apply) else None
        ctx.save_for_backward(x, weight, bias, residual, mask, batch.count, batch.mean, var, r, d)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """With respect to the affine map of xhat first, then to weight and bias."""
        (dy,) = grad_outputs
        x, weight, bias, residual, mask, count, mean, var, r, d = ctx.saved_tensors
        eps, activation, negative_slope = ctx.settings
        apply = corrected(Apply(weight, bias, eps, residual, mask, activation, negative_slope), r, d)
        if torch.is_grad_enabled() or not has_memory(dy):
            dx, dscale, dshift, dresidual = differentiable_backward(dy, x, apply)
        else:
            grads = serving(x, apply, dy).backward(dy, x, mean, var, apply, count)
            dx, dscale, dshift, dresidual = grads.x, grads.weight[0], grads.bias[0], grads.residual
        if ctx.has_residual and residual is None:
            dresidual = dy
        if dscale is None or dshift is None or weight is None:
            return dx, None, None, dresidual, *(None,) * 4
        dweight = (dscale * r + dshift * d).to(weight.dtype)
        return dx, dweight, None if bias is None else dshift.to(bias.dtype), dresidual, *(None,) * 4
