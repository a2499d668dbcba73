"""The kernels as operators and as autograd functions: schemas, fakes and autograd; no arithmetic.

They take (groups * N, C, *), as the kernels do, and are differentiable to any order: where a graph of the gradient is
asked for, it is taken in operations that torch differentiates.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..kernels import Apply, serving
from ..moments import statistics_dtype
from ..torch_internals import direct
from . import vmap
from .gradients import (
    Four,
    batch_norm_gradients,
    changes_dresidual,
    normalize_gradients,
    save_batch_norm,
    save_normalize,
)

SETTINGS = (
    "Tensor? weight, Tensor? bias, float eps, Tensor? residual, Tensor? mask, str? activation, float negative_slope"
)
"""`Apply` in an operator's schema."""
_APPLY = f"{SETTINGS}, int groups"


# ---- the kernels as operators: tensors in, tensors out ----


def batch_norm_by(backend: ModuleType, x: Tensor, *settings: Any) -> Four:
    *fields, groups = settings
    y, moments = backend.forward(x, Apply(*fields), groups)
    return y, moments.count, moments.mean, moments.m2


def normalize_by(backend: ModuleType, x: Tensor, mean: Tensor, var: Tensor, *settings: Any) -> Tensor:
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
    return batch_norm_by(serving(x, Apply(*settings[:-1])), x, *settings)


def _normalize(x: Tensor, *settings: Any) -> Tensor:
    return normalize_by(serving(x, Apply(*settings[2:-1]), *settings[:2]), x, *settings)


def _backward(dy: Tensor, x: Tensor, *settings: Any) -> Four:
    return _backward_by(serving(x, Apply(*settings[3:-1]), dy), dy, x, *settings)


# ---- the two routes that carry a gradient: autograd functions, and operators for the compiler ----


class BatchNorm(torch.autograd.Function):
    forward = staticmethod(_batch_norm)
    setup_context = staticmethod(save_batch_norm)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Four, tuple]:
        return vmap.batch_norm(BatchNorm.apply, info, in_dims, *inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        return batch_norm_gradients(ctx, grad_outputs[0], _backward)


class Normalize(torch.autograd.Function):
    forward = staticmethod(_normalize)
    setup_context = staticmethod(save_normalize)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Tensor, int]:
        return vmap.normalize(Normalize.apply, info, in_dims, *inputs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        return normalize_gradients(ctx, grad_outputs[0], _backward)


def _plain(function: Any) -> Callable[..., Any]:
    """The function for tensors that no transformation follows: torch calls it in fewer steps."""

    class Plain(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = function.forward(*inputs)
            function.setup_context(ctx, inputs, output)
            return output

        backward = staticmethod(function.backward)

    return direct(Plain)


def _define(name: str, kernel: Callable, schema: str) -> Any:
    return torch.library.custom_op(f"steadynorm::{name}", kernel, mutates_args=(), schema=schema)


batch_norm_op = _define("batch_norm", _batch_norm, f"(Tensor x, {_APPLY}) -> (Tensor, Tensor, Tensor, Tensor)")
normalize_op = _define("normalize", _normalize, f"(Tensor x, Tensor mean, Tensor var, {_APPLY}) -> Tensor")
_backward_op = _define(
    "batch_norm_backward",
    _backward,
    f"(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor? count, {_APPLY}) -> (Tensor, Tensor, Tensor, Tensor)",
)


def _per_group(x: Tensor, groups: int) -> Tensor:
    return x.new_empty(groups, x.shape[1], dtype=statistics_dtype(x.device))


@batch_norm_op.register_fake
def _(x: Tensor, *settings: Any) -> Four:
    groups = settings[-1]
    return torch.empty_like(x), _per_group(x, groups), _per_group(x, groups), _per_group(x, groups)


@normalize_op.register_fake
def _(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x)


@_backward_op.register_fake
def _(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, count: Tensor | None, *settings: Any) -> Four:
    *fields, groups = settings
    dresidual = torch.empty_like(x) if changes_dresidual(Apply(*fields)) else x.new_empty(0)
    return torch.empty_like(x), _per_group(x, groups), _per_group(x, groups), dresidual


batch_norm_op.register_autograd(
    lambda ctx, dy, *_: batch_norm_gradients(ctx, dy, _backward_op), setup_context=save_batch_norm
)
normalize_op.register_autograd(lambda ctx, dy: normalize_gradients(ctx, dy, _backward_op), setup_context=save_normalize)
batch_norm_op.register_vmap(partial(vmap.batch_norm, batch_norm_op))
normalize_op.register_vmap(partial(vmap.normalize, normalize_op))
_backward_op.register_vmap(partial(vmap.backward, _backward_op))

plain_batch_norm, plain_normalize = _plain(BatchNorm), _plain(Normalize)
