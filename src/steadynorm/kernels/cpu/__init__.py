"""The six functions as a compiled core for CPU tensors: float32, float64, bfloat16, float16, in both memory orders.

Elements are computed in float32 (float64 for float64), sums of them in blocks that float64 adds up, statistics in
float64. Results are the same bits whatever the number of threads. The core, `_core`, is C without torch; here tensors
are made to fit. What users pass has been checked before: see inputs.py.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ...errors import InvalidArgumentError
from ...moments import Moments
from ...torch_internals import count_change
from .. import ACTIVATIONS, Apply, Gradients
from ..running import Outcome, Running
from . import _core, threads

_ACTIVATION_CODES = {None: 0} | {name: code for code, name in enumerate(ACTIVATIONS, 1)}
_BENT = ("relu", "relu6", "leaky_relu")
"""Activations whose derivative one bit can keep."""
_OUTCOMES = tuple(Outcome(finite=bool(bits & 1), counted=bool(bits & 2)) for bits in range(4))
ASKED = "STEADYNORM_INSTRUCTION_SET"
"""Environment variable that names the instruction set to use; by default the widest that the processor has."""


def use_instruction_set(name: str) -> None:
    """Has the core compute by one of `instruction_sets()`.

    Raises:
        InvalidArgumentError (a ValueError): this processor or build has none of that name.
    """
    if not _core.use_instruction_set(name):
        raise InvalidArgumentError(
            f"{ASKED}: expected one of {', '.join(_core.instruction_sets())}, which this processor has, got {name!r}."
        )


instruction_sets, instruction_set, takes = _core.instruction_sets, _core.instruction_set, _core.takes

if not _core.use_tensors(getattr(Tensor, "__dlpack_c_exchange_api__", None), Tensor, torch.nn.Parameter):
    raise ImportError("steadynorm's compiled core reads tensors by DLPack 1, which this torch does not offer.")
threads.share_torchs()
if os.environ.get(ASKED):
    use_instruction_set(os.environ[ASKED])


def moments(x: Tensor, mask: Tensor | None = None, groups: int = 1) -> Moments:
    found = _moments_of(x, groups)
    _forward(x, Apply(None, None, 0.0, mask=mask), groups, None, found)
    return found


def normalize(x: Tensor, mean: Tensor, var: Tensor, apply: Apply, groups: int = 1) -> Tensor:
    x = _dense(x)
    y = torch.empty_like(x)
    _forward(x, apply, groups, y, None, mean, var)
    return y


def forward(x: Tensor, apply: Apply, groups: int = 1) -> tuple[Tensor, Moments]:
    x = _dense(x)
    y, found = torch.empty_like(x), _moments_of(x, groups)
    _forward(x, apply, groups, y, found)
    return y, found


def reduce_grad(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, apply: Apply, groups: int = 1
) -> tuple[Tensor, Tensor]:
    sums = _per_group(x, groups), _per_group(x, groups)
    _backward(dy, x, mean, var, apply, groups, None, None, None, sums, measures=True)
    return sums


def input_grad(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    apply: Apply,
    sums: tuple[Tensor, Tensor] | None = None,
    count: Tensor | None = None,
    groups: int = 1,
) -> tuple[Tensor, Tensor | None]:
    x = _dense(x)
    dx, dresidual = torch.empty_like(x), _empty_dresidual(x, apply)
    given = None
    if sums is None:
        count = None
    else:
        shape = groups, x.shape[1]
        given = _as_statistics(sums[0], shape), _as_statistics(sums[1], shape)
    _backward(dy, x, mean, var, apply, groups, dx, dresidual, count, given, measures=False)
    return dx, dresidual


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    apply: Apply,
    count: Tensor | None = None,
    groups: int = 1,
) -> Gradients:
    x = _dense(x)
    dx, dresidual = torch.empty_like(x), _empty_dresidual(x, apply)
    sums = _per_group(x, groups), _per_group(x, groups)
    _backward(dy, x, mean, var, apply, groups, dx, dresidual, count, sums, measures=True)
    return Gradients(dx, sums[1], sums[0], dresidual)


# ---- a training step ----


def train(x: Tensor, apply: Apply, running: Running) -> tuple[Tensor, bytes, Tensor | None, Outcome]:
    """`forward` of one group that moves the running statistics too.

    Returns:
        y; what `train_backward` needs of the batch's moments; where a residual and a piecewise linear activation are,
        uint8 with one bit a value, which says where the activation's derivative is 1, else None; and what was found.
    """
    weight, bias, eps, residual, mask, activation, negative_slope = apply
    mean, var, momentum, moves, guarded, _, batches = running
    if not moves or mean is None or var is None:
        mean = var = batches = None
    signs = None
    if residual is not None or mask is not None:
        x, residual, mask = _laid_out(x, residual, mask)
        if residual is not None and activation in _BENT:
            signs = torch.empty(_core.signs_size(x, mask), dtype=torch.uint8, device=x.device)
    y = torch.empty_like(x)
    settings = _ACTIVATION_CODES[activation], negative_slope, eps, torch.get_num_threads()
    given = x, residual, mask, y, signs, weight, bias, mean, var, batches
    found, kept = _core.train(*given, momentum, guarded, *settings)
    outcome = _OUTCOMES[found]
    if mean is not None and var is not None:
        count_change((mean, var, batches) if outcome.counted and batches is not None else (mean, var))
    return y, kept, signs, outcome


def train_backward(
    dy: Tensor, x: Tensor, kept: bytes, apply: Apply, signs: Tensor | None, wants_dx: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """`backward` of what `train` gave: dx; dweight and dbias, of their parameters' shape and dtype; dresidual.

    With signs, `apply` need not have the residual; with neither, there is none, or its gradient is dy.
    """
    weight, bias, eps, residual, mask, activation, negative_slope = apply
    if not _core.alike(x, dy, residual):
        x, residual, mask = _laid_out(x, residual, mask)
        dy = _laid_out_like(dy, x)
    dx = torch.empty_like(x) if wants_dx else None
    dresidual = None if residual is None and signs is None else torch.empty_like(x)
    dweight = None if weight is None else torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    settings = _ACTIVATION_CODES[activation], negative_slope, eps, torch.get_num_threads()
    _core.train_backward(x, dy, residual, mask, signs, dx, dresidual, kept, weight, bias, dweight, dbias, *settings)
    return dx, dweight, dbias, dresidual


def unpack_signs(signs: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
    """Where the activation's derivative is 1, of what `train` gave for both: bool of x's shape and memory order."""
    x = _dense(x)
    found = torch.empty_like(x, dtype=torch.bool)
    _core.unpack_signs(x, mask, signs, found)
    return found


# ---- what the core refuses, made to fit ----


def _forward(
    x: Tensor,
    apply: Apply,
    groups: int,
    y: Tensor | None,
    found: Moments | None,
    mean: Tensor | None = None,
    var: Tensor | None = None,
) -> None:
    weight, bias, eps, residual, mask, activation, negative_slope = apply
    x, residual, mask = _laid_out(x, residual, mask)
    moments = (None, None, None) if found is None else (found.count, found.mean, found.m2)
    settings = _ACTIVATION_CODES[activation], negative_slope, eps, torch.get_num_threads()
    _core.forward(x, groups, residual, mask, y, *moments, mean, var, weight, bias, *settings)


def _backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    apply: Apply,
    groups: int,
    dx: Tensor | None,
    dresidual: Tensor | None,
    count: Tensor | None,
    sums: tuple[Tensor, Tensor] | None,
    *,
    measures: bool,
) -> None:
    weight, bias, eps, residual, mask, activation, negative_slope = apply
    x, residual, mask = _laid_out(x, residual, mask)
    dy = _laid_out_like(dy, x)
    if count is not None:
        count = _as_statistics(count, (groups, x.shape[1]))
    sum_dz, sum_dz_xhat = sums or (None, None)
    given = mean, var, weight, bias, count, sum_dz, sum_dz_xhat, measures
    settings = _ACTIVATION_CODES[activation], negative_slope, eps, torch.get_num_threads()
    _core.backward(x, groups, dy, residual, mask, dx, dresidual, *given, *settings)


def _laid_out(x: Tensor, residual: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x dense, the residual in its memory order, the mask contiguous."""
    x = _dense(x)
    if residual is not None:
        residual = _laid_out_like(residual, x)
    return x, residual, mask if mask is None else mask.contiguous()


def _dense(x: Tensor) -> Tensor:
    return x if _core.alike(x) else x.contiguous()


def _laid_out_like(values: Tensor, x: Tensor) -> Tensor:
    return values if _core.alike(x, values) else torch.empty_like(x).copy_(values)


def _as_statistics(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """float64 (groups, channels)."""
    return values.double().expand(shape).contiguous()


def _per_group(x: Tensor, groups: int) -> Tensor:
    return torch.empty((groups, x.shape[1]), dtype=torch.float64, device=x.device)


def _moments_of(x: Tensor, groups: int) -> Moments:
    """Memory for moments."""
    return Moments(_per_group(x, groups), _per_group(x, groups), _per_group(x, groups))


def _empty_dresidual(x: Tensor, apply: Apply) -> Tensor | None:
    return None if apply.residual is None else torch.empty_like(x)
