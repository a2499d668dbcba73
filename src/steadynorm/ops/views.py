"""Shapes: natural and canonical, and a dimension mapped by vmap as groups. Nothing is copied where memory is dense."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..kernels import Apply


def dense(x: Tensor) -> Tensor:
    """`x` itself if its memory is dense with channels first or last, else a contiguous copy."""
    if x.is_contiguous() or x.movedim(1, -1).is_contiguous():
        return x
    return x.contiguous()


def canonical_apply(*settings: Any) -> tuple[Apply, int]:
    *fields, groups = settings
    apply = Apply(*fields)
    residual = None if apply.residual is None else canonical(apply.residual, groups)
    mask = None if apply.mask is None else canonical(apply.mask, groups)
    return apply._replace(residual=residual, mask=mask), groups


def canonical(x: Tensor, groups: int) -> Tensor:
    """(groups * N, C, *) → (groups, N, C, L), a view where x is dense."""
    length = 1
    for size in x.shape[2:]:
        length = length * size
    return x.reshape(groups, x.shape[0] // groups, x.shape[1], length)


def natural(y: Tensor, like: Tensor) -> Tensor:
    """Canonical y with the shape and strides of `like`; copied only where a kernel chose another memory order."""
    y = torch.ops.aten._unsafe_view(y, like.shape)
    return y if y.stride() == like.stride() else torch.empty_like(like).copy_(y)


def fold_settings(size: int, dims: list, settings: tuple) -> tuple[Apply, int]:
    *fields, groups = settings
    apply, dim = Apply(*fields), Apply(*dims[:-1])
    folded = apply._replace(
        weight=fold_channels(size, dim.weight, apply.weight, groups),
        bias=fold_channels(size, dim.bias, apply.bias, groups),
        residual=None if apply.residual is None else fold_examples(size, dim.residual, apply.residual),
        mask=None if apply.mask is None else fold_examples(size, dim.mask, apply.mask),
    )
    return folded, size * groups


def fold_examples(size: int, dim: Any, x: Tensor) -> Tensor:
    """A mapped (groups * N, C, *) → (size * groups * N, C, *)."""
    mapped = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return dense(mapped.flatten(0, 1))


def fold_channels(size: int, dim: Any, values: Tensor | None, groups: int) -> Tensor | None:
    """A mapped (C,) or (groups, C) → (size * groups, C); values of (C,) that all share stay as they are."""
    if values is None or (dim is None and values.dim() == 1):
        return values
    mapped = values.expand(size, *values.shape) if dim is None else values.movedim(dim, 0)
    if mapped.dim() == 2:
        mapped = mapped.unsqueeze(1).expand(size, groups, -1)
    return mapped.flatten(0, 1)


def unfold(size: int, y: Tensor) -> Tensor:
    return y.unflatten(0, (size, y.shape[0] // size))
