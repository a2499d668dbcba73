"""The custom operators: schema, fake kernels, autograd and vmap; no arithmetic.

They take (groups * N, C, *), as the kernels do. `batch_norm` and `normalize` are differentiable to any order, by one of
these routes:

- compiling or exporting: an opaque `torch.library` operator
- forward-mode differentiation: the eager kernel, which torch differentiates itself
- under vmap, torch.func.grad and the like: an autograd function that they know how to transform
- otherwise an autograd function that costs less, or, when no gradient is wanted, the kernel itself
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..kernels import Apply, eager, has_memory, serving
from ..moments import Moments, statistics_dtype
from .gradients import (
    Four,
    batch_norm_gradients,
    changes_dresidual,
    normalize_gradients,
    save_batch_norm,
    save_normalize,
)
from .views import dense, fold_channels, fold_examples, fold_settings, unfold

__all__ = ["batch_norm", "dense", "normalize"]

SETTINGS = (
    "Tensor? weight, Tensor? bias, float eps, Tensor? residual, Tensor? mask, str? activation, float negative_slope"
)
"""`Apply` in an operator's schema."""
_APPLY = f"{SETTINGS}, int groups"


def batch_norm(x: Tensor, apply: Apply, groups: int = 1) -> tuple[Tensor, Moments]:
    """Normalizes by the batch's own statistics.

    Args:
        x: (groups * N, C, *), see `dense`; residual has its shape, mask is (groups * N, 1, *).
        apply: what happens to a normalized value.
        groups: how many equal groups of examples have statistics of their own.

    Returns:
        y, of x's shape and memory order, and the moments, (groups, C), which pass no gradient.
    """
    y, *moments = _route(_BATCH_NORM, x, *apply, groups)
    return y, Moments(*moments)


def normalize(x: Tensor, mean: Tensor, var: Tensor, apply: Apply, groups: int = 1) -> Tensor:
    """Normalizes by given statistics, (C,) or (groups, C), which receive no gradient; the rest as `batch_norm`."""
    return _route(_NORMALIZE, x, mean, var, *apply, groups)


def transforms_active() -> bool:
    """Whether something other than torch's ordinary autograd follows what is computed: it must see operators."""
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active() or torch._C._is_tracing()


class _Routes(NamedTuple):
    operator: Callable
    differentiable: Callable
    function: type[torch.autograd.Function]
    plain: type[torch.autograd.Function]
    kernel: Callable


def _route(routes: _Routes, *arguments: Any) -> Any:
    operator, differentiable, function, plain, kernel = routes
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return operator(*arguments)
    if forward_ad._current_level >= 0:
        return differentiable(*arguments)
    tensors = [argument for argument in arguments if isinstance(argument, Tensor)]
    if torch._C._are_functorch_transforms_active() or not all(map(has_memory, tensors)):
        return function.apply(*arguments)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return plain.apply(*arguments)
    return kernel(*arguments)


# ---- the kernels as operators: tensors in, tensors out ----


def _batch_norm_by(backend: ModuleType, x: Tensor, *settings: Any) -> Four:
    *fields, groups = settings
    y, moments = backend.forward(x, Apply(*fields), groups)
    return y, moments.count, moments.mean, moments.m2


def _normalize_by(backend: ModuleType, x: Tensor, mean: Tensor, var: Tensor, *settings: Any) -> Tensor:
    *fields, groups = settings
    return backend.normalize(x, mean, var, Apply(*fields), groups)


def _backward_by(
    backend: ModuleType, dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, count: Tensor | None, *settings: Any
) -> Four:
    """dx; dweight and dbias, (groups, C); dresidual, empty if there is none or it is dy. No count: constants."""
    *fields, groups = settings
    apply = Apply(*fields)
    if not changes_dresidual(apply):
        apply = apply._replace(residual=None)
    grads = backend.backward(dy, x, mean, var, apply, count, groups)
    return grads.x, grads.weight, grads.bias, x.new_empty(0) if grads.residual is None else grads.residual


def _batch_norm(x: Tensor, *settings: Any) -> Four:
    return _batch_norm_by(serving(x, settings[3]), x, *settings)


def _normalize(x: Tensor, *settings: Any) -> Tensor:
    return _normalize_by(serving(x, settings[5]), x, *settings)


def _backward(dy: Tensor, x: Tensor, *settings: Any) -> Four:
    return _backward_by(serving(x, dy), dy, x, *settings)


# ---- vmap: the mapped dimension becomes groups ----


def _vmap_batch_norm(run: Callable, info: Any, in_dims: tuple, x: Tensor, *settings: Any) -> tuple[Four, tuple]:
    """`run` is what is mapped: an operator's rule must end in the operator, a function's in the function."""
    x_dim, *dims = in_dims
    apply, groups = fold_settings(info.batch_size, dims, settings)
    outputs = run(fold_examples(info.batch_size, x_dim, x), *apply, groups)
    return tuple(unfold(info.batch_size, t) for t in outputs), (0, 0, 0, 0)  # type: ignore[return-value]


def _vmap_normalize(
    run: Callable, info: Any, in_dims: tuple, x: Tensor, mean: Tensor, var: Tensor, *settings: Any
) -> tuple[Tensor, int]:
    x_dim, mean_dim, var_dim, *dims = in_dims
    size, groups = info.batch_size, settings[-1]
    apply, folded_groups = fold_settings(size, dims, settings)
    statistics = (fold_channels(size, mean_dim, mean, groups), fold_channels(size, var_dim, var, groups))
    y = run(fold_examples(size, x_dim, x), *statistics, *apply, folded_groups)
    return unfold(size, y), 0


def _vmap_backward(info: Any, in_dims: tuple, dy: Tensor, x: Tensor, *rest: Any) -> tuple[Four, tuple]:
    size, groups = info.batch_size, rest[-1]
    dy_dim, x_dim, *dims = in_dims
    statistics = (fold_channels(size, dim, v, groups) for dim, v in zip(dims[:3], rest[:3], strict=True))
    apply, folded_groups = fold_settings(size, dims[3:], rest[3:])
    examples = (fold_examples(size, dy_dim, dy), fold_examples(size, x_dim, x))
    *outputs, dresidual = _backward_op(*examples, *statistics, *apply, folded_groups)
    unfolded = [unfold(size, t) for t in outputs]
    if not changes_dresidual(apply):
        return (*unfolded, dresidual), (0, 0, 0, None)  # type: ignore[return-value]
    return (*unfolded, unfold(size, dresidual)), (0, 0, 0, 0)  # type: ignore[return-value]


# ---- the two routes that carry a gradient: autograd functions, and operators for the compiler ----


class _BatchNorm(torch.autograd.Function):
    forward = staticmethod(_batch_norm)
    setup_context = staticmethod(save_batch_norm)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Four, tuple]:
        return _vmap_batch_norm(_BatchNorm.apply, info, in_dims, *inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        return batch_norm_gradients(ctx, grad_outputs[0], _backward)


class _Normalize(torch.autograd.Function):
    forward = staticmethod(_normalize)
    setup_context = staticmethod(save_normalize)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Tensor, int]:
        return _vmap_normalize(_Normalize.apply, info, in_dims, *inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        return normalize_gradients(ctx, grad_outputs[0], _backward)


def _plain(function: Any) -> type[torch.autograd.Function]:
    """The function for tensors that no transformation traces: torch calls it in fewer steps."""

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = function.forward(*inputs)
            function.setup_context(ctx, inputs, output)
            return output

        backward = staticmethod(function.backward)

    return Plain


def _define(name: str, kernel: Callable, schema: str) -> Any:
    return torch.library.custom_op(f"steadynorm::{name}", kernel, mutates_args=(), schema=schema)


_batch_norm_op = _define("batch_norm", _batch_norm, f"(Tensor x, {_APPLY}) -> (Tensor, Tensor, Tensor, Tensor)")
_normalize_op = _define("normalize", _normalize, f"(Tensor x, Tensor mean, Tensor var, {_APPLY}) -> Tensor")
_backward_op = _define(
    "batch_norm_backward",
    _backward,
    f"(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? count, {_APPLY}) -> (Tensor, Tensor, Tensor, Tensor)",
)


def _per_group(x: Tensor, groups: int) -> Tensor:
    return x.new_empty(groups, x.shape[1], dtype=statistics_dtype(x.device))


@_batch_norm_op.register_fake
def _(x: Tensor, *settings: Any) -> Four:
    groups = settings[-1]
    return torch.empty_like(x), _per_group(x, groups), _per_group(x, groups), _per_group(x, groups)


@_normalize_op.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


@_backward_op.register_fake
def _(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, count: Tensor | None, *settings: Any) -> Four:
    *fields, groups = settings
    dresidual = torch.empty_like(x) if changes_dresidual(Apply(*fields)) else x.new_empty(0)
    return torch.empty_like(x), _per_group(x, groups), _per_group(x, groups), dresidual


_batch_norm_op.register_autograd(
    lambda ctx, dy, *_: batch_norm_gradients(ctx, dy, _backward_op), setup_context=save_batch_norm
)
_normalize_op.register_autograd(
    lambda ctx, dy: normalize_gradients(ctx, dy, _backward_op), setup_context=save_normalize
)
_batch_norm_op.register_vmap(partial(_vmap_batch_norm, _batch_norm_op))
_normalize_op.register_vmap(partial(_vmap_normalize, _normalize_op))
_backward_op.register_vmap(_vmap_backward)

_BATCH_NORM = _Routes(_batch_norm_op, partial(_batch_norm_by, eager), _BatchNorm, _plain(_BatchNorm), _batch_norm)
_NORMALIZE = _Routes(_normalize_op, partial(_normalize_by, eager), _Normalize, _plain(_Normalize), _normalize)
