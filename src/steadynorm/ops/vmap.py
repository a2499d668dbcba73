"""vmap: the mapped dimension becomes groups. Nothing is copied where memory is dense.

In each rule `run` is what is mapped: an operator's rule must end in the operator, a function's in the function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..inputs import dense
from ..kernels import Apply
from .gradients import Four, changes_dresidual


def batch_norm(run: Callable, info: Any, in_dims: tuple, x: Tensor, *settings: Any) -> tuple[Four, tuple]:
    x_dim, *dims = in_dims
    apply, groups = _fold_settings(info.batch_size, dims, settings)
    outputs = run(_fold_examples(info.batch_size, x_dim, x), *apply, groups)
    return tuple(_unfold(info.batch_size, t) for t in outputs), (0, 0, 0, 0)  # type: ignore[return-value]


def normalize(
    run: Callable, info: Any, in_dims: tuple, x: Tensor, mean: Tensor, var: Tensor, *settings: Any
) -> tuple[Tensor, int]:
    x_dim, mean_dim, var_dim, *dims = in_dims
    size, groups = info.batch_size, settings[-1]
    apply, folded_groups = _fold_settings(size, dims, settings)
    statistics = (_fold_channels(size, mean_dim, mean, groups), _fold_channels(size, var_dim, var, groups))
    y = run(_fold_examples(size, x_dim, x), *statistics, *apply, folded_groups)
    return _unfold(size, y), 0


def backward(run: Callable, info: Any, in_dims: tuple, dy: Tensor, x: Tensor, *rest: Any) -> tuple[Four, tuple]:
    size, groups = info.batch_size, rest[-1]
    dy_dim, x_dim, *dims = in_dims
    statistics = (_fold_channels(size, dim, v, groups) for dim, v in zip(dims[:3], rest[:3], strict=True))
    apply, folded_groups = _fold_settings(size, dims[3:], rest[3:])
    examples = (_fold_examples(size, dy_dim, dy), _fold_examples(size, x_dim, x))
    *outputs, dresidual = run(*examples, *statistics, *apply, folded_groups)
    unfolded = [_unfold(size, t) for t in outputs]
    if not changes_dresidual(apply):
        return (*unfolded, dresidual), (0, 0, 0, None)  # type: ignore[return-value]
    return (*unfolded, _unfold(size, dresidual)), (0, 0, 0, 0)  # type: ignore[return-value]


def _fold_settings(size: int, dims: list, settings: tuple) -> tuple[Apply, int]:
    *fields, groups = settings
    apply, dim = Apply(*fields), Apply(*dims[:-1])
    folded = apply._replace(
        weight=_fold_channels(size, dim.weight, apply.weight, groups),
        bias=_fold_channels(size, dim.bias, apply.bias, groups),
        residual=None if apply.residual is None else _fold_examples(size, dim.residual, apply.residual),
        mask=None if apply.mask is None else _fold_examples(size, dim.mask, apply.mask),
    )
    return folded, size * groups


def _fold_examples(size: int, dim: Any, x: Tensor) -> Tensor:
    """A mapped (groups * N, C, *) → (size * groups * N, C, *)."""
    mapped = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return dense(mapped.flatten(0, 1))


def _fold_channels(size: int, dim: Any, values: Tensor | None, groups: int) -> Tensor | None:
    """A mapped (C,) or (groups, C) → (size * groups, C); values of (C,) that all share stay as they are."""
    if values is None or (dim is None and values.dim() == 1):
        return values
    mapped = values.expand(size, *values.shape) if dim is None else values.movedim(dim, 0)
    if mapped.dim() == 2:
        mapped = mapped.unsqueeze(1).expand(size, groups, -1)
    return mapped.flatten(0, 1)


def _unfold(size: int, y: Tensor) -> Tensor:
    return y.unflatten(0, (size, y.shape[0] // size))
