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
from ..kernels.running import Outcome, Running
from ..torch_internals import direct
from .gradients import changes_dresidual, differentiable_backward


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
    ) -> tuple[Tensor, Outcome]:
        y, kept, signs, outcome = core.train(x, apply, running)
        _, _, eps, _, mask, activation, negative_slope = apply
        needed = residual if residual is not None and signs is None and changes_dresidual(apply) else None
        ctx.save_for_backward(x, weight, bias, needed, mask, signs)
        layout = None if signs is None else (x.dtype, x.stride())
        ctx.constants = core, kept, eps, activation, negative_slope, residual is not None, layout
        return y, outcome

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        dy = grad_outputs[0]
        x, weight, bias, residual, mask, signs = ctx.saved_tensors
        core, kept, eps, activation, negative_slope, has_residual, layout = ctx.constants
        # Hooks that pack what is saved may give it back in another dtype or memory order.
        if mask is not None:
            mask = mask.to(torch.bool)
        if signs is not None:
            signs = signs.to(torch.uint8)
            if (x.dtype, x.stride()) != layout:  # signs lie as x did
                x = torch.empty_strided(x.shape, layout[1], dtype=layout[0]).copy_(x)
        apply = Apply(weight, bias, eps, residual, mask, activation, negative_slope)
        if torch.is_grad_enabled() or not has_memory(dy):
            known = None if signs is None else core.unpack_signs(signs, x, mask)
            dx, dweight, dbias, dresidual = differentiable_backward(dy, x, apply, signs=known)
        else:
            wants_dx = ctx.needs_input_grad[0]
            dx, dweight, dbias, dresidual = core.train_backward(dy, x, kept, apply, signs, wants_dx)
        if has_residual and residual is None and signs is None:
            dresidual = dy
        return dx, dweight, dbias, dresidual, None, None, None


step = direct(_Step)
"""y, and what was found."""
