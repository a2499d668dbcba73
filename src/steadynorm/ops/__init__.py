"""What a normalization computes, by the route that `routes` chooses; no arithmetic.

All of it is differentiable to any order, except by moments, which pass no gradient.
"""

from __future__ import annotations

from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor

from ..kernels import Apply, eager
from ..kernels.running import FINE, Outcome, Running, settle
from ..moments import Moments
from . import compiled, native, operators
from .routes import EAGER, FUNCTIONS, KERNELS, NATIVE, OPERATORS, STEP, Choice, choose

__all__ = ["batch_norm", "moments", "normalize", "train"]

_BATCH_NORM: dict[str, Any] = {
    OPERATORS: operators.batch_norm_op,
    EAGER: partial(operators.batch_norm_by, eager),
    FUNCTIONS: operators.BatchNorm.apply,
    KERNELS: operators.plain_batch_norm,
}
_NORMALIZE: dict[str, Any] = {
    OPERATORS: operators.normalize_op,
    EAGER: partial(operators.normalize_by, eager),
    FUNCTIONS: operators.Normalize.apply,
    KERNELS: operators.plain_normalize,
}


def train(
    who: object, x: Tensor, apply: Apply, running: Running, core: ModuleType | None = None
) -> tuple[Tensor, Outcome]:
    """Normalizes by the batch, and does with its statistics what is asked.

    Args:
        who: the name that error messages begin with.
        x: (N, C, *), dense; residual has its shape, mask is (N, 1, *).
        apply: what happens to a normalized value.
        running: what is to become of the running statistics.
        core: the compiled core, where it is known to compute with all these tensors.

    Returns:
        y, of x's shape and memory order, and what was found.
    """
    route, core, differentiated = call = choose(x, apply, running, core=core)
    if route == STEP:
        if differentiated:
            return compiled.step(x, apply.weight, apply.bias, apply.residual, core, apply, running)
        y, _, _, outcome = core.train(x, apply, running)  # type: ignore[union-attr]
        return y, outcome
    if route == NATIVE:
        return native.train(who, x, apply, running)
    y, batch = _by(call, x, apply, 1)
    if x.numel() == 0 and not running.collects:
        return y, FINE
    return y, settle(who, running, batch)


def batch_norm(x: Tensor, apply: Apply, groups: int = 1) -> tuple[Tensor, Moments]:
    """Normalizes by the batch's own statistics.

    Args:
        x: (groups * N, C, *), dense; residual has its shape, mask is (groups * N, 1, *).
        apply: what happens to a normalized value.
        groups: how many equal groups of examples have statistics of their own.

    Returns:
        y, of x's shape and memory order, and the moments, (groups, C), which pass no gradient.
    """
    return _by(choose(x, apply, groups=groups), x, apply, groups)


def normalize(
    x: Tensor, mean: Tensor, var: Tensor, apply: Apply, groups: int = 1, core: ModuleType | None = None
) -> Tensor:
    """Normalizes by given statistics, (C,) or (groups, C), which receive no gradient; the rest as `batch_norm`."""
    route, core, differentiated = choose(x, apply, None, (mean, var), groups, core)
    if route == KERNELS and not differentiated:
        return (core or eager).normalize(x, mean, var, apply, groups)
    if route == NATIVE:
        return native.normalize(x, mean, var, apply, differentiated)
    if route == OPERATORS and groups == 1 and mean.dim() == 1:
        return native.normalize_for_compiler(x, mean, var, apply)
    return _NORMALIZE[route](x, mean, var, *apply, groups)


def moments(x: Tensor, mask: Tensor | None) -> Moments:
    """The moments (1, C) of the real elements of x, (N, C, *), dense."""
    return (choose(x, Apply(None, None, 0.0, mask=mask)).core or eager).moments(x, mask)


def _by(call: Choice, x: Tensor, apply: Apply, groups: int) -> tuple[Tensor, Moments]:
    """y and the moments by any route that hands them over."""
    if call.route == KERNELS and not call.differentiated:
        return (call.core or eager).forward(x, apply, groups)
    y, *batch = _BATCH_NORM[call.route](x, *apply, groups)
    return y, Moments(*batch)
