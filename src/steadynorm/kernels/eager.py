"""The six functions in plain PyTorch: any device, differentiable to any order.

Inside, tensors are (G, N, C, L): groups, examples, channels, positions. Arithmetic per channel is float64; per element
it is the data's dtype, float32 for 16-bit data.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..moments import Moments, measure, statistics_dtype
from ..torch_internals import unsafe_view
from . import Apply, Gradients


def moments(x: Tensor, mask: Tensor | None = None, groups: int = 1) -> Moments:
    return measure(_canonical(x, groups), dims=[1, 3], mask=None if mask is None else _canonical(mask, groups))


def normalize(x: Tensor, mean: Tensor, var: Tensor, apply: Apply, groups: int = 1) -> Tensor:
    data, apply = _canonical(x, groups), _canonical_apply(apply, groups)
    y = activate(_pre_activation(_centre(data, mean), var, apply), apply)
    if apply.mask is not None:
        y = torch.where(apply.mask, y, 0)
    return _natural(y.to(x.dtype), x)


def forward(x: Tensor, apply: Apply, groups: int = 1) -> tuple[Tensor, Moments]:
    statistics = moments(x, apply.mask, groups)
    return normalize(x, statistics.mean, statistics.var, apply, groups), statistics


def reduce_grad(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, apply: Apply, groups: int = 1
) -> tuple[Tensor, Tensor]:
    dz, centred, apply = _gradient(dy, x, mean, var, apply, groups)
    return _reduce(dz, centred, var, apply)


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
    dz, centred, apply = _gradient(dy, x, mean, var, apply, groups)
    dx = _natural(_input_grad(dz, centred, var, apply, sums, count).to(x.dtype), x)
    return dx, None if apply.residual is None else _natural(dz.to(x.dtype), x)


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    apply: Apply,
    count: Tensor | None = None,
    groups: int = 1,
    *,
    signs: Tensor | None = None,
) -> Gradients:
    """With `signs`, bool of x's shape, a piecewise linear activation has slope 1 there, and no residual is needed."""
    dz, centred, apply = _gradient(dy, x, mean, var, apply, groups, signs)
    sums = _reduce(dz, centred, var, apply)
    dx = _input_grad(dz, centred, var, apply, sums if count is not None else None, count)
    has_residual = apply.residual is not None or signs is not None
    return Gradients(
        _natural(dx.to(x.dtype), x), sums[1], sums[0], _natural(dz.to(x.dtype), x) if has_residual else None
    )


# ---- shapes ----


def _canonical(x: Tensor, groups: int) -> Tensor:
    """(groups * N, C, *) → (groups, N, C, L), a view where x is dense."""
    length = 1
    for size in x.shape[2:]:
        length = length * size
    return x.reshape(groups, x.shape[0] // groups, x.shape[1], length)


def _canonical_apply(apply: Apply, groups: int) -> Apply:
    residual = None if apply.residual is None else _canonical(apply.residual, groups)
    mask = None if apply.mask is None else _canonical(apply.mask, groups)
    return apply._replace(residual=residual, mask=mask)


def _natural(y: Tensor, like: Tensor) -> Tensor:
    """Canonical y with the shape and strides of `like`; copied only where an operation chose another memory order."""
    y = unsafe_view(y, like.shape)
    return y if y.stride() == like.stride() else torch.empty_like(like).copy_(y)


# ---- the arithmetic, on canonical tensors ----


class Centred(NamedTuple):
    """x minus the mean as x's working dtype holds it, and what rounding took from the mean."""

    x: Tensor
    rest: Tensor


def _centre(x: Tensor, mean: Tensor) -> Centred:
    data = _working(x)
    mean = mean.to(statistics_dtype(x.device))
    held = mean.to(data.dtype)
    return Centred(data - _per_channel(held, data), mean - held)


def _pre_activation(centred: Centred, var: Tensor, apply: Apply) -> Tensor:
    """z in the working dtype. What rounding took from the mean is put back through the shift."""
    x, rest = centred
    scale = _scale(var, apply)
    shift = -rest * scale if apply.bias is None else apply.bias - rest * scale
    z = torch.addcmul(_per_channel(shift, x), x, _per_channel(scale, x))
    return z if apply.residual is None else z + apply.residual


def _pre_activation_grad(
    dy: Tensor, centred: Centred, var: Tensor, apply: Apply, signs: Tensor | None = None
) -> Tensor:
    """dz, 0 where the mask is False, in the working dtype."""
    dz = _working(dy)
    if signs is not None:
        dz = torch.where(signs, dz, dz * apply.negative_slope if apply.activation == "leaky_relu" else 0)
    elif apply.activation is not None:
        dz = _activate_grad(dz, _pre_activation(centred, var, apply), apply)
    return dz if apply.mask is None else torch.where(apply.mask, dz, 0)


def _gradient(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, apply: Apply, groups: int, signs: Tensor | None = None
) -> tuple[Tensor, Centred, Apply]:
    """dz, x minus the mean, and what is applied; canonical."""
    apply = _canonical_apply(apply, groups)
    centred = _centre(_canonical(x, groups), mean)
    signs = None if signs is None else _canonical(signs, groups)
    return _pre_activation_grad(_canonical(dy, groups), centred, var, apply, signs), centred, apply


def _reduce(dz: Tensor, centred: Centred, var: Tensor, apply: Apply) -> tuple[Tensor, Tensor]:
    x, rest = centred
    if apply.mask is not None:
        x = torch.where(apply.mask, x, 0)
    sum_dz = dz.sum([1, 3]).to(rest.dtype)
    sum_dz_centred = (dz * x).sum([1, 3]).to(rest.dtype) - rest * sum_dz
    return sum_dz, sum_dz_centred * _invstd(var, apply)


def _input_grad(
    dz: Tensor,
    centred: Centred,
    var: Tensor,
    apply: Apply,
    sums: tuple[Tensor, Tensor] | None,
    count: Tensor | None,
) -> Tensor:
    scale = _per_channel(_scale(var, apply), dz)
    if sums is None or count is None:
        return dz * scale
    x, rest = centred
    sum_dz, sum_dz_xhat = sums
    number = count.clamp(min=1)
    slope = sum_dz_xhat / number * _invstd(var, apply)
    level = sum_dz / number - slope * rest
    dx = (dz - _per_channel(level, dz) - x * _per_channel(slope, dz)) * scale
    return dx if apply.mask is None else torch.where(apply.mask, dx, 0)


def activate(z: Tensor, apply: Apply) -> Tensor:
    """The activation of `apply` at z, a tensor of any shape."""
    match apply.activation:
        case None:
            return z
        case "leaky_relu":
            return F.leaky_relu(z, apply.negative_slope)
        case name:
            return getattr(torch if name in ("relu", "sigmoid", "tanh") else F, name)(z)


def _activate_grad(dy: Tensor, z: Tensor, apply: Apply) -> Tensor:
    """dy times the activation's derivative at z, in operations whose own derivatives are right."""
    match apply.activation:
        case "relu":
            return torch.where(z <= 0, 0, dy)
        case "leaky_relu":
            return torch.where(z <= 0, dy * apply.negative_slope, dy)
        case "relu6":
            return torch.where((z <= 0) | (z >= 6), 0, dy)
        case "hardswish":
            return torch.where(z <= -3, 0, torch.where(z < 3, dy * (z / 3 + 0.5), dy))
        case "sigmoid":
            y = torch.sigmoid(z)
            return dy * (y * (1 - y))
        case "tanh":
            return dy * (1 - torch.tanh(z).square())
        case "silu":
            gate = torch.sigmoid(z)
            return dy * (gate * (1 + z * (1 - gate)))
        case "gelu":
            density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
            return dy * (0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * density)
        case name:
            raise ValueError(f"no activation {name!r}")


def _working(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _invstd(var: Tensor, apply: Apply) -> Tensor:
    return torch.rsqrt(var.to(statistics_dtype(var.device)) + apply.eps)


def _scale(var: Tensor, apply: Apply) -> Tensor:
    return _invstd(var, apply) if apply.weight is None else _invstd(var, apply) * apply.weight


def _per_channel(values: Tensor, like: Tensor) -> Tensor:
    """(C,) or (G, C) → (1 or G, 1, C, 1) in the dtype of `like`."""
    return values.to(like.dtype).unsqueeze(-1).unsqueeze(-3)
