"""Who computes: one table over facts that are asked once a call."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

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
    core: ModuleType | None = None
    steps: bool = False
    covered: bool = False
    differentiated: bool = False


RECORDED = Facts(recorded=True)

def choose(call: Facts) -> str:
    """The route of a call: the first row whose condition holds."""
    # One opaque node of a graph; in inference torch's elementwise operators, which a compiler fuses with others.
    if call.recorded:
        return OPERATORS
    # torch differentiates plain operators forwards by itself; no rule is written for it.
    if call.dual:
        return EAGER
    # Functions that know how to be transformed: under vmap the mapped dimension becomes groups.
    if call.wrapped:
        return FUNCTIONS
    # One compiled call each way and one function: with cold caches every further tensor costs more than arithmetic.
    if call.steps:
        return STEP
    # The fastest operator that this device has, by people who know it; the formula in plain PyTorch is several times
    # slower there.
    if call.covered:
        return NATIVE
    # The six functions, compiled or in plain PyTorch, take everything: groups, masks, moments that are wanted.
    return KERNELS


def facts(
    x: Tensor,
    apply: Apply,
    running: Running | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
    groups: int = 1,
    core: ModuleType | None = None,
) -> Facts:
    """The facts of a call.

    Args:
        x, apply: what is normalized, and what happens to it.
        running: in a training step of one group, what is to become of the running statistics.
        statistics: in inference, the mean and variance, (C,) or (groups, C).
        groups: how many parts of the batch do not share statistics.
        core: the compiled core, where it is known to compute with all these tensors; then nothing records.
    """
    if core is None and in_graph():
        return RECORDED
    weight, bias, _, residual, mask, activation, _ = apply
    dual, wrapped = in_forward_mode(), in_transform()
    mean, var = running[:2] if running is not None else statistics or (None, None)
    if core is None:
        wrapped = wrapped or not has_memory(x, weight, bias, residual, mask, mean, var)
        core = None if dual or wrapped else core_for(x, activation)
    elif dual or wrapped:
        core = None
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
        mean.is_contiguous()
        and var.is_contiguous()
        and not (mean.requires_grad or var.requires_grad or mean.is_inference() or var.is_inference())
        and (type(momentum) is float or not isinstance(momentum, Tensor) or readable(momentum))
    )
