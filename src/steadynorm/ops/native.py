"""torch's own operator, where there is no compiled core: the fastest kernel of the device, and never waited for.

What follows the normalization happens in place, as batch normalization keeps its input for the gradient, not its
output. Its first two derivatives are right; its third is wrong, or refused from torch 2.14 on: where a graph of the
gradient is asked for, ours replaces it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import TensorWeakRef

from ..kernels import Apply, eager, readable
from ..kernels.running import FINE, Outcome, Running, move
from ..moments import statistics_dtype
from ..torch_internals import unsafe_view
from .gradients import differentiable_backward


def train(who: object, x: Tensor, apply: Apply, running: Running) -> tuple[Tensor, Outcome]:
    """Normalizes by the batch and moves the running statistics.

    Args:
        who: the name that error messages begin with.
        x: (N, C, *), of a dtype in `COMPILED`, more than one value a channel.
        apply: what happens to a normalized value; no mask.
        running: what is to become of the running statistics; its moments are not wanted.
    """
    mean, var = running.mean, running.var
    if mean is None or var is None:
        return _batch_norm(x, apply, None, None, True, 0.0), FINE
    if running.moves and _torch_can_move(x, running, mean, var):
        return _batch_norm(x, apply, mean, var, True, running.momentum), FINE
    # Moved from 0 by all of it, they are the batch's own. Given also where nothing moves, for activation checkpointing:
    # torch keeps them for the gradient, and a forward that is repeated has to keep as many tensors as before.
    found = x.new_zeros(2, x.shape[1], dtype=_parameter_dtype(x))
    y = _batch_norm(x, apply, found[0], found[1], True, 1.0)
    if not running.moves:
        return y, FINE
    wide = found.to(statistics_dtype(x.device))
    return y, move(who, running, ((mean, wide[0]), (var, wide[1])), None, wide.isfinite().all())


def normalize(x: Tensor, mean: Tensor, var: Tensor, apply: Apply, differentiated: bool) -> Tensor:
    """Normalizes by given statistics (C,), without a mask."""
    dtype = _parameter_dtype(x)
    if differentiated:  # torch keeps them for the gradient, and a train-mode forward may move them before it is taken
        mean, var = (t.detach().to(dtype, copy=True) for t in (mean, var))
    return _batch_norm(x, apply, mean.to(dtype), var.to(dtype), False, 0.0)


def normalize_for_compiler(x: Tensor, mean: Tensor, var: Tensor, apply: Apply) -> Tensor:
    """Inference in torch's own operators, which a compiler fuses and an exported program runs anywhere."""
    residual = apply.residual
    if apply.mask is not None:  # what it leaves out may be nan, which `where` keeps from results but not from gradients
        x = torch.where(apply.mask, x, 0)
        residual = None if residual is None else torch.where(apply.mask, residual, 0)
    y = F.batch_norm(x, mean, var, apply.weight, apply.bias, False, 0.0, apply.eps)
    y = eager.activate(y if residual is None else y + residual, apply)
    return y if apply.mask is None else torch.where(apply.mask, y, 0)


def _parameter_dtype(x: Tensor) -> torch.dtype:
    """The one dtype for all that is a channel's which torch's operator takes beside x, and is exact in."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _torch_can_move(x: Tensor, running: Running, mean: Tensor, var: Tensor) -> bool:
    """Whether torch's operator itself does to the running statistics what is asked.

    Not where the batch can be looked at, for then it is looked at whether its statistics are finite.
    """
    dtype = _parameter_dtype(x)
    return (
        not isinstance(running.momentum, Tensor)
        and not running.guarded
        and mean.dtype == dtype == var.dtype
        and mean.is_contiguous()
        and var.is_contiguous()
        and not readable(x)
    )


def _batch_norm(
    x: Tensor, apply: Apply, mean: Tensor | None, var: Tensor | None, training: bool, momentum: Any
) -> Tensor:
    dtype = _parameter_dtype(x)
    weight, bias = (None if values is None else values.to(dtype) for values in (apply.weight, apply.bias))
    data = x if _is_known(x) else x.flatten(2).unsqueeze(2)
    y = torch.batch_norm(data, weight, bias, mean, var, training, momentum, apply.eps, torch.backends.cudnn.enabled)
    if y.grad_fn is not None and "BatchNorm" in type(y.grad_fn).__name__:  # else made of operators, and right
        constants = None if training or mean is None or var is None else (mean, var)
        y.grad_fn.register_hook(partial(_replace, TensorWeakRef(data), weight, bias, apply.eps, constants))
    return _finish(y if data is x else unsafe_view(y, x.shape), apply)


def _is_known(x: Tensor) -> bool:
    """Whether torch's operator keeps the memory order of dense x: of channels last, it knows images and volumes."""
    return x.is_contiguous() or x.dim() in (4, 5)


def _finish(y: Tensor, apply: Apply) -> Tensor:
    """Adds the residual and activates, in place where autograd then needs nothing that is gone."""
    if apply.residual is not None:
        y = y.add_(apply.residual)
    match apply.activation:
        case "relu":
            return y.relu_()
        case "relu6":
            return F.relu6(y, inplace=True)
        case "leaky_relu" if apply.negative_slope >= 0:  # its sign tells autograd on which side a value was
            return F.leaky_relu(y, apply.negative_slope, inplace=True)
        case "sigmoid":
            return y.sigmoid_()
        case "tanh":
            return y.tanh_()
        case "silu" | "hardswish" as name if not y.requires_grad:  # their gradients are taken at what went in
            return getattr(F, name)(y, inplace=True)
        case _:
            return eager.activate(y, apply)


def _replace(
    saved: TensorWeakRef,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    constants: tuple[Tensor, Tensor] | None,
    gradients: tuple[Tensor | None, ...],
    outputs: tuple[Tensor, ...],
) -> tuple[Tensor | None, ...] | None:
    """Instead of torch's gradients, where a graph of them is asked for, ours.

    x is held by torch's own node, unless hooks pack what it saves; then torch's gradients stay, whose first two
    derivatives are right.
    """
    if not torch.is_grad_enabled() or outputs[0] is None or (x := saved()) is None:
        return None
    ours = differentiable_backward(outputs[0], x, Apply(weight, bias, eps), constants=constants)
    return tuple(None if theirs is None else own for theirs, own in zip(gradients, ours, strict=False))
