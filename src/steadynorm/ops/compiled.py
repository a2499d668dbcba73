"""A training step by the compiled core: one call each way, which moves the running statistics too.

What Python does for a layer, with cold caches in the midst of a network, costs more than the arithmetic of a
medium-sized tensor; so there is one autograd function with few inputs, and no operator.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..kernels import Apply, has_memory
from ..kernels.running import FINE, POISONED, Outcome, Running
from ..torch_internals import direct
from .gradients import changes_dresidual, differentiable_backward


def train(core: ModuleType, x: Tensor, apply: Apply, running: Running, differentiated: bool) -> tuple[Tensor, Outcome]:
    """Normalizes by the batch and moves the running statistics.

    Args:
        core: the compiled core.
        x: (N, C, *), dense, more than one value a channel.
        apply: what happens to a normalized value.
        running: what is to become of running statistics that the core can move.
        differentiated: whether a gradient is wanted.
    """
    if differentiated:
        y, finite = _step(x, apply[0], apply[1], apply[3], core, apply, running)
    else:
        y, _, _, finite = core.train(x, apply, running)
    return y, FINE if finite or not running.moves or running.mean is None else POISONED


class _Step(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        residual: Tensor | None,
        core: ModuleType,
        apply: Apply,
        running: Running,
    ) -> tuple[Tensor, bool]:
        y, statistics, signs, finite = core.train(x, apply, running)
        _, _, eps, _, mask, activation, negative_slope = apply
        needed = residual if signs is None and changes_dresidual(apply) else None
        ctx.save_for_backward(x, statistics, weight, bias, needed, mask, signs)
        ctx.constants = core, eps, activation, negative_slope, residual is not None
        return y, finite

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        dy = grad_outputs[0]
        x, statistics, weight, bias, residual, mask, signs = ctx.saved_tensors
        core, eps, activation, negative_slope, has_residual = ctx.constants
        apply = Apply(weight, bias, eps, residual, mask, activation, negative_slope)
        if signs is not None:
            signs = signs.to(torch.uint8)  # hooks that pack what is saved may have widened it
        if torch.is_grad_enabled() or not has_memory(dy):
            known = None if signs is None else core.unpack_signs(signs, x)
            dx, dweight, dbias, dresidual = differentiable_backward(dy, x, apply, signs=known)
        else:
            wants_dx = ctx.needs_input_grad[0]
            dx, dweight, dbias, dresidual = core.train_backward(dy, x, statistics, apply, signs, wants_dx)
        if has_residual and residual is None and signs is None:
            dresidual = dy
        return dx, dweight, dbias, dresidual, None, None, None


_step = direct(_Step)
