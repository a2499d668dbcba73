"""Who computes: one function, whose rows are looked at in order."""

from __future__ import annotations

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from ..kernels import COMPILED, Apply, core_for, has_memory, readable
from ..kernels.running import Running
from ..torch_internals import in_forward_mode, in_graph, in_transform

OPERATORS, EAGER, FUNCTIONS, STEP, NATIVE, KERNELS = "operators", "eager", "functions", "step", "native", "kernels"


class Choice(NamedTuple):
    """Who computes.

    Attributes:
        route: one of the six.
        core: the compiled core, a module, if it serves this data here and now; else None.
        differentiated: whether a gradient is wanted; not asked where a graph is recorded.
    """

    route: str
    core: ModuleType | None = None
    differentiated: bool = False


def choose(
    x: Tensor,
    apply: Apply,
    running: Running | None = None,
    statistics: tuple[Tensor, Tensor] | None = None,
    groups: int = 1,
    core: ModuleType | None = None,
) -> Choice:
    """The first route whose condition holds.

    Args:
        x, apply: what is normalized, and what happens to it.
        running: in a training step of one group, what is to become of the running statistics.
        statistics: in inference, the mean and variance, (C,) or (groups, C).
        groups: how many parts of the batch do not share statistics.
        core: the compiled core, where it is known to compute with all these tensors; then nothing records.
    """
    # One opaque node of a graph; in inference torch's elementwise operators, which a compiler fuses with others.
    if core is None and in_graph():
        return Choice(OPERATORS)
    weight, bias, _, residual, mask, activation, _ = apply
    differentiated = torch.is_grad_enabled() and (
        x.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    )
    # torch differentiates plain operators forwards by itself; no rule is written for it.
    if in_forward_mode():
        return Choice(EAGER, None, differentiated)
    # A transformation such as vmap follows, or a tensor has no memory of its own: functions that know how to be
    # transformed. Under vmap the mapped dimension becomes groups.
    mean, var = running[:2] if running is not None else statistics or (None, None)
    if in_transform() or (core is None and not has_memory(x, weight, bias, residual, mask, mean, var)):
        return Choice(FUNCTIONS, None, differentiated)
    taken = core is not None
    if core is None:
        core = core_for(x, activation)
    if core is not None:
        # One compiled call each way and one function: with cold caches every further tensor costs more than arithmetic.
        if running is not None and _core_can_do(running, taken) and not (differentiated and x.is_inference()):
            return Choice(STEP, core, differentiated)
    elif mask is None and groups == 1 and x.dtype in COMPILED and x.numel() > 0:
        # The fastest operator that this device has, by people who know it; the formula in plain PyTorch is several
        # times slower there.
        if not running.collects if running is not None else mean is not None and mean.dim() == 1:
            return Choice(NATIVE, None, differentiated)
    # The six functions, compiled or in plain PyTorch, take everything: groups, masks, moments that are wanted.
    return Choice(KERNELS, core, differentiated)


def _core_can_do(running: Running, taken: bool) -> bool:
    """Whether the core can do to running statistics what is asked: where they move, it writes to their memory.

    Args:
        running: what is asked.
        taken: whether the core has looked at how they lie in memory.
    """
    mean, var, momentum, moves, _, collects, batches = running
    if collects or not moves or mean is None or var is None:
        return not collects
    return (
        (taken or (_is_plain(mean) and _is_plain(var)))
        and not (mean.requires_grad or var.requires_grad or mean.is_inference() or var.is_inference())
        and not (batches is not None and batches.is_inference())
        and (type(momentum) is float or not isinstance(momentum, Tensor) or readable(momentum))
    )


def _is_plain(values: Tensor) -> bool:
    """Whether memory holds these values, each in a place of its own."""
    return values.is_contiguous() and not values.is_neg()
