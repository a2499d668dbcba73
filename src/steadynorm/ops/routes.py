"""Who computes: one table over facts that are asked once a call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..kernels import COMPILED, Apply, core_for, has_memory, readable
from ..kernels.running import Running
from ..torch_internals import in_forward_mode, in_graph, in_transform

OPERATORS, EAGER, FUNCTIONS, STEP, NATIVE, KERNELS = "operators", "eager", "functions", "step", "native", "kernels"


class Facts(NamedTuple):
    """What decides.

    Attributes:
        recorded: a compiler, an exporter or a tracer records operators; nothing else is asked then.
        dual: derivatives are taken forwards.
        wrapped: a transformation such as vmap follows, or a tensor has no memory of its own.
        core: the compiled core, a module, if it serves this data here and now; else None.
        steps: the core can do the whole training step, with all that is to happen to running statistics.
        covered: torch's own operator does the same, where there is no core.
        differentiated: a gradient is wanted.
    """

    recorded: bool = False
    dual: bool = False
    wrapped: bool = False
    core: Any = None
    steps: bool = False
    covered: bool = False
    differentiated: bool = False


RECORDED = Facts(recorded=True)

ROUTES: tuple[tuple[str, Callable[[Facts], bool]], ...] = (
    # One opaque node of a graph; in inference torch's elementwise operators, which a compiler fuses with others.
    (OPERATORS, lambda call: call.recorded),
    # torch differentiates plain operators forwards by itself; no rule is written for it.
    (EAGER, lambda call: call.dual),
    # Functions that know how to be transformed: under vmap the mapped dimension becomes groups.
    (FUNCTIONS, lambda call: call.wrapped),
    # One compiled call each way and one function: with cold caches every further tensor costs more than arithmetic.
    (STEP, lambda call: call.steps),
    # The fastest operator that this device has, by people who know it; the formula in plain PyTorch is several times
    # slower there.
    (NATIVE, lambda call: call.covered),
    # The six functions, compiled or in plain PyTorch, take everything: groups, masks, moments that are wanted.
    (KERNELS, lambda call: True),
)
"""The first row whose condition holds serves the call."""


def choose(call: Facts) -> str:
    """The route of a call."""
    return next(route for route, serves in ROUTES if serves(call))


def facts(
    x: Tensor,
    apply: Apply,
    running: Running | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
    groups: int = 1,
) -> Facts:
    """The facts of a call.

    Args:
        x, apply: what is normalized, and what happens to it.
        running: in a training step of one group, what is to become of the running statistics.
        statistics: in inference, the mean and variance, (C,) or (groups, C).
        groups: how many parts of the batch do not share statistics.
    """
    if in_graph():
        return RECORDED
    weight, bias, _, residual, mask, activation, _ = apply
    mean, var = running[:2] if running is not None else statistics or (None, None)
    dual = in_forward_mode()
    wrapped = in_transform() or not has_memory(x, weight, bias, residual, mask, mean, var)
    core = None if dual or wrapped else core_for(x, activation)
    differentiated = torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    )
    steps = covered = False
    if core is not None:
        steps = running is not None and _is_for_core(running) and not (differentiated and x.is_inference())
    elif mask is None and groups == 1:
        alone = not running.collects if running is not None else mean is not None and mean.dim() == 1
        covered = alone and not wrapped and x.dtype in COMPILED and x.numel() > 0
    return Facts(False, dual, wrapped, core, steps, covered, differentiated)


def _is_for_core(running: Running) -> bool:
    """Whether the core can do to running statistics what is asked: where they move, it writes to their memory."""
    mean, var, momentum, moves, _, collects = running
    if collects or not moves or mean is None or var is None:
        return not collects
    return (
        mean.dtype == var.dtype
        and mean.is_contiguous()
        and var.is_contiguous()
        and not (mean.requires_grad or var.requires_grad or mean.is_inference() or var.is_inference())
        and (type(momentum) is float or not isinstance(momentum, Tensor) or readable(momentum))
    )
