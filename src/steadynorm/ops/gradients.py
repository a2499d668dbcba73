"""Gradients, shared by the autograd functions and the operators: what is saved, and in what way it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels import Apply, eager
from ..moments import Moments

Four = tuple[Tensor, Tensor, Tensor, Tensor]


def differentiable_backward(
    dy: Tensor,
    x: Tensor,
    apply: Apply,
    groups: int = 1,
    constants: tuple[Tensor, Tensor] | None = None,
    signs: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of x, weight, bias and residual in operations that torch differentiates.

    Of `normalize` where its mean and variance are given as constants, else of `batch_norm`. `signs`, bool of x's shape,
    says where a piecewise linear activation has slope 1; then there was a residual, and none is needed here.
    """
    mask = apply.mask
    if mask is not None:  # what it leaves out may be nan, which `where` keeps from results but not from a graph
        dy, x = torch.where(mask, dy, 0), torch.where(mask, x, 0)
        apply = apply._replace(residual=None if apply.residual is None else torch.where(mask, apply.residual, 0))
    if constants is None:
        moments = eager.moments(x, mask, groups)
        mean, var, count = moments.mean, moments.var, moments.count
    else:
        (mean, var), count = constants, None
    grads = eager.backward(dy, x, mean, var, apply, count, groups, signs=signs)
    return grads.x, _shaped_like(apply.weight, grads.weight), _shaped_like(apply.bias, grads.bias), grads.residual


def changes_dresidual(apply: Apply) -> bool:
    """Whether there is a residual, and its gradient is not simply dy."""
    return apply.residual is not None and (apply.activation is not None or apply.mask is not None)


def _save(ctx: Any, x: Tensor, mean: Tensor, var: Tensor, count: Tensor | None, *settings: Any) -> None:
    apply = Apply(*settings[:-1])
    _, _, ctx.eps, _, _, ctx.activation, ctx.negative_slope, ctx.groups = settings
    ctx.has_residual = apply.residual is not None
    residual = apply.residual if changes_dresidual(apply) else None
    ctx.save_for_backward(x, mean, var, count, apply.weight, apply.bias, residual, apply.mask)
    ctx.set_materialize_grads(False)


def save_batch_norm(ctx: Any, inputs: tuple, output: Four) -> None:
    x, *settings = inputs
    _, count, mean, m2 = output
    ctx.mark_non_differentiable(count, mean, m2)
    var = m2 / count if settings[4] is None and x.numel() > 0 else Moments(count, mean, m2).var
    _save(ctx, x, mean, var, count, *settings)


def save_normalize(ctx: Any, inputs: tuple, output: Tensor) -> None:
    """Copies the statistics, which are running ones: a train-mode forward may move them before this backward."""
    x, mean, var, *settings = inputs
    if any(ctx.needs_input_grad):
        _save(ctx, x, mean.clone(), var.clone(), None, *settings)


def _gradients(ctx: Any, dy: Tensor | None, kernel: Callable[..., Four]) -> tuple[Tensor | None, ...]:
    """Gradients of x, weight, bias, eps, residual: where a graph of them is asked for, in differentiable operations."""
    if dy is None:
        return (None,) * 5
    x, mean, var, count, weight, bias, residual, mask = ctx.saved_tensors
    apply = Apply(weight, bias, ctx.eps, residual, mask, ctx.activation, ctx.negative_slope)
    if torch.is_grad_enabled():
        constants = (mean, var) if count is None else None
        dx, dweight, dbias, dresidual = differentiable_backward(dy, x, apply, ctx.groups, constants)
    else:
        dx, dweight, dbias, dresidual = kernel(dy, x, mean, var, count, *apply, ctx.groups)
        dweight, dbias = _shaped_like(weight, dweight), _shaped_like(bias, dbias)
    return dx, dweight, dbias, None, None if not ctx.has_residual else dy if residual is None else dresidual


def _shaped_like(parameter: Tensor | None, gradient: Tensor) -> Tensor | None:
    """(groups, C) → the parameter's shape, (C,) or (groups, C), and dtype; None for no parameter."""
    if parameter is None:
        return None
    if parameter.dim() == 1:
        gradient = gradient[0] if gradient.shape[0] == 1 else gradient.sum(0)
    return gradient.to(parameter.dtype)


def batch_norm_gradients(ctx: Any, dy: Tensor | None, kernel: Callable[..., Four]) -> tuple[Tensor | None, ...]:
    return (*_gradients(ctx, dy, kernel), None, None, None, None)


def normalize_gradients(ctx: Any, dy: Tensor | None, kernel: Callable[..., Four]) -> tuple[Tensor | None, ...]:
    dx, *rest = _gradients(ctx, dy, kernel)
    return (dx, None, None, *rest, None, None, None, None)
