"""The six functions as a compiled core for CPU tensors: float32, float64, bfloat16, float16, in both memory orders.

Elements are computed in float32 (float64 for float64), sums of them in blocks that float64 adds up, statistics in
float64. Results are the same bits whatever the number of threads. The core, `_core`, is C without torch; here tensors
become addresses. What users pass has been checked before: see inputs.py.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ...errors import InvalidArgumentError
from ...moments import Moments
from .. import ACTIVATIONS, Apply, Gradients
from ..running import Running
from . import _core, threads

CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""Dtypes, and their numbers in core.h."""
_ACTIVATION_CODES = {None: 0} | {name: code for code, name in enumerate(ACTIVATIONS, 1)}
_BENT = ("relu", "relu6", "leaky_relu")
"""Activations whose derivative one bit can keep."""
_NO_VECTOR = (0, 0, 0)
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


instruction_sets, instruction_set = _core.instruction_sets, _core.instruction_set

threads.share_torchs()
if os.environ.get(ASKED):
    use_instruction_set(os.environ[ASKED])


def moments(x: Tensor, mask: Tensor | None = None, groups: int = 1) -> Moments:
    x = _dense(x)
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
    x = _dense(x)
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


def train(x: Tensor, apply: Apply, running: Running) -> tuple[Tensor, Tensor, Tensor | None, bool]:
    """`forward` of one group that moves the running statistics too, which are contiguous and of one dtype if they move.

    Returns:
        y; count, mean, m2 and variance, float64 (4, C); where a residual and a piecewise linear activation are, uint8
        with one bit a value, which says where the activation's derivative is 1, else None; and whether the moments are
        finite, as far as running statistics move.
    """
    weight, bias, eps, residual, mask, activation, negative_slope = apply
    mean, var = (running.mean, running.var) if running.moves else (None, None)
    x, weight, bias = _dense(x), _contiguous(weight), _contiguous(bias)
    y = torch.empty_like(x)
    shape = _shape(x, 1, activation, negative_slope, eps)
    statistics = torch.empty((4, x.shape[1]), dtype=torch.float64)
    first, line = statistics.data_ptr(), x.shape[1] * 8
    signs = None
    if residual is not None:
        residual = _laid_out_like(residual, x)
        if activation in _BENT:
            signs = torch.empty(_core.signs_size(*shape), dtype=torch.uint8)
    finite = _core.forward(
        *shape,
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        y.data_ptr(),
        0 if signs is None else signs.data_ptr(),
        first,
        first + line,
        first + 2 * line,
        first + 3 * line,
        *_NO_VECTOR,
        *_NO_VECTOR,
        *_vector(weight),
        *_vector(bias),
        *_vector(mean),
        *_vector(var),
        float(running.momentum),
        running.guarded,
    )
    if mean is not None and var is not None:
        torch.autograd.graph.increment_version((mean, var))
    return y, statistics, signs, finite


def train_backward(
    dy: Tensor, x: Tensor, statistics: Tensor, apply: Apply, signs: Tensor | None, wants_dx: bool
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """`backward` of what `train` gave: dx; dweight and dbias, of their parameters' shape and dtype; dresidual.

    With signs, `apply` need not have the residual; with neither, there is none, or its gradient is dy.
    """
    weight, bias, eps, residual, mask, activation, negative_slope = apply
    x, weight, bias = _dense(x), _contiguous(weight), _contiguous(bias)
    dy = _laid_out_like(dy, x)
    dresidual = None if residual is None and signs is None else torch.empty_like(x)
    if residual is not None:
        residual = _laid_out_like(residual, x)
    statistics = statistics.double().contiguous()  # hooks may have saved them otherwise
    dx = torch.empty_like(x) if wants_dx else None
    dweight = None if weight is None else torch.empty_like(weight)
    dbias = None if bias is None else torch.empty_like(bias)
    channels = x.shape[1]
    sums = torch.empty((2, channels), dtype=torch.float64)
    first, line = statistics.data_ptr(), channels * 8
    _core.backward(
        *_shape(x, 1, activation, negative_slope, eps),
        dy.data_ptr(),
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        0 if signs is None else signs.data_ptr(),
        0 if dx is None else dx.data_ptr(),
        0 if dresidual is None else dresidual.data_ptr(),
        *(first + line, 1, 0),
        *(first + 3 * line, 1, 0),
        *_vector(weight),
        *_vector(bias),
        first,
        sums.data_ptr(),
        sums.data_ptr() + line,
        True,
        *_vector(dweight),
        *_vector(dbias),
    )
    return dx, dweight, dbias, dresidual


def unpack_signs(signs: Tensor, x: Tensor) -> Tensor:
    """Where the activation's derivative is 1, of what `train` gave for x: bool of x's shape and memory order."""
    x = _dense(x)
    found = torch.empty_like(x, dtype=torch.bool)
    _core.unpack_signs(*_shape(x, 1, None, 0.0, 0.0), signs.data_ptr(), found.data_ptr())
    return found


# ---- tensors as addresses ----


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
    if residual is not None:
        residual = _laid_out_like(residual, x)
    mean, var, weight, bias, mask = map(_contiguous, (mean, var, weight, bias, mask))
    _core.forward(
        *_shape(x, groups, activation, negative_slope, eps),
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        0 if y is None else y.data_ptr(),
        0,
        *((0, 0, 0) if found is None else (found.count.data_ptr(), found.mean.data_ptr(), found.m2.data_ptr())),
        0,
        *_vector(mean),
        *_vector(var),
        *_vector(weight),
        *_vector(bias),
        *_NO_VECTOR,
        *_NO_VECTOR,
        0.0,
        False,
    )


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
    dy = _laid_out_like(dy, x)
    if residual is not None:
        residual = _laid_out_like(residual, x)
    if count is not None:
        count = _as_statistics(count, (groups, x.shape[1]))
    mean, var = mean.contiguous(), var.contiguous()
    weight, bias, mask = map(_contiguous, (weight, bias, mask))
    _core.backward(
        *_shape(x, groups, activation, negative_slope, eps),
        dy.data_ptr(),
        x.data_ptr(),
        0 if residual is None else residual.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        0,
        0 if dx is None else dx.data_ptr(),
        0 if dresidual is None else dresidual.data_ptr(),
        *_vector(mean),
        *_vector(var),
        *_vector(weight),
        *_vector(bias),
        0 if count is None else count.data_ptr(),
        *((0, 0) if sums is None else (sums[0].data_ptr(), sums[1].data_ptr())),
        measures,
        *_NO_VECTOR,
        *_NO_VECTOR,
    )


def _shape(
    x: Tensor, groups: int, activation: str | None, slope: float, eps: float
) -> tuple[int, int, int, int, int, bool, int, float, float, int]:
    examples, channels = x.shape[0], x.shape[1]
    return (
        CODES[x.dtype],
        groups,
        examples // groups,
        channels,
        x.numel() // (examples * channels),
        not x.is_contiguous(),
        _ACTIVATION_CODES[activation],
        slope,
        eps,
        torch.get_num_threads(),
    )


def _vector(values: Tensor | None) -> tuple[int, int, int]:
    """Address, dtype and step from group to group."""
    if values is None:
        return _NO_VECTOR
    return values.data_ptr(), CODES[values.dtype], 0 if values.dim() == 1 else values.shape[-1]


def _dense(x: Tensor) -> Tensor:
    return x if x.is_contiguous() or x.movedim(1, -1).is_contiguous() else x.contiguous()


def _contiguous(values: Tensor | None) -> Tensor | None:
    return values if values is None or values.is_contiguous() else values.contiguous()


def _laid_out_like(values: Tensor, x: Tensor) -> Tensor:
    if values.stride() == x.stride() and values.dtype == x.dtype:
        return values
    return torch.empty_like(x).copy_(values)


def _as_statistics(values: Tensor, shape: tuple[int, int]) -> Tensor:
    """float64 (groups, channels)."""
    return values.double().expand(shape).contiguous()


def _per_group(x: Tensor, groups: int) -> Tensor:
    return torch.empty((groups, x.shape[1]), dtype=torch.float64)


def _moments_of(x: Tensor, groups: int) -> Moments:
    """Memory for moments."""
    return Moments(_per_group(x, groups), _per_group(x, groups), _per_group(x, groups))


def _empty_dresidual(x: Tensor, apply: Apply) -> Tensor | None:
    return None if apply.residual is None else torch.empty_like(x)
