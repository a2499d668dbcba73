"""Shapes: dense memory, and a dimension mapped by vmap as groups. Nothing is copied where memory is dense."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..kernels import Apply


def dense(x: Tensor) -> Tensor:
    """`x` itself if its memory is dense with channels first or last, else a contiguous copy."""
    if x.is_contiguous() or x.movedim(1, -1).is_contiguous():
        return x
    return x.contiguous()


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
