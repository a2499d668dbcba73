"""Batch normalization by the moments of all ranks: one gather forward, one sum backward.

Every rank takes part in both, whatever it has: an empty batch is moments of count 0 and sums of 0. Derivatives of any
order, in reverse mode. Under a compiler both directions are operators that take the process group's name; they have an
ordered effect, so that ranks whose graphs differ in sizes do not exchange in different orders.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import InvalidInputError, SynchronizationError
from ..kernels import Apply, eager, serving
from ..moments import Moments, statistics_dtype
from ..torch_internals import in_graph, keep_in_order, process_group
from .gradients import Four, changes_dresidual
from .operators import SETTINGS

_RANKS = "str group, str who"


class Ranks(NamedTuple):
    """Who exchanges statistics, and what happens to one value a channel.

    Attributes:
        who: the name that error messages begin with.
        group: name of the process group.
        mean: (C,), with `var` what normalizes where all ranks together have one value a channel; None to raise.
        var: (C,), likewise.
    """

    who: str
    group: str
    mean: Tensor | None = None
    var: Tensor | None = None


def batch_norm(x: Tensor, apply: Apply, ranks: Ranks) -> tuple[Tensor, Moments]:
    """Normalizes by the moments of all ranks' data.

    Args:
        x: this rank's data, (N, C, *), dense; N, the positions and the mask may differ from rank to rank.
        apply: what happens to a normalized value; the parameters' gradients are this rank's own sums.
        ranks: who exchanges statistics.

    Returns:
        y, of x's shape and memory order, and the moments of all ranks, (1, C), which pass no gradient.

    Raises:
        InvalidInputError (a ValueError): all ranks together have one value a channel.
        SynchronizationError (a RuntimeError): the ranks could not exchange their moments; in the backward pass too.
    """
    y, *moments = (_batch_norm_op if in_graph() else _BatchNorm.apply)(
        x, *apply, ranks.mean, ranks.var, ranks.group, ranks.who
    )
    return y, Moments(*moments)


# ---- between ranks ----


@contextmanager
def exchanging(who: str) -> Iterator[None]:
    """Says who was waiting for the other ranks when torch gives up."""
    try:
        yield
    except RuntimeError as error:
        raise SynchronizationError(
            f"{who}: the ranks could not exchange their statistics: {error}. Look at the other ranks' output first: "
            "one has ended, waits elsewhere, or runs another model. All must come here equally often, also those "
            "without data."
        ) from error


def _gathered(own: Moments, group: str, who: str) -> Moments:
    """The moments of all ranks."""
    packed = torch.stack([own.count, own.mean, own.m2])
    with exchanging(who):
        ranks = process_group(group)
        found = packed.new_empty(ranks.size(), *packed.shape)
        dist.all_gather(list(found), packed, ranks)
    return Moments(*found.unbind(1)).union()


class _Sum(torch.autograd.Function):
    """The sum over ranks. All of them have it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(values: Tensor, group: str, who: str) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        with exchanging(who):
            dist.all_reduce(total, group=process_group(group))
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        _, ctx.group, ctx.who = inputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        return _Sum.apply(grad_outputs[0], ctx.group, ctx.who), None, None


def _gathered_differentiably(own: Moments, group: str, who: str) -> Moments:
    """As `_gathered`: each rank's part among zeros, summed."""
    packed = torch.stack([own.count, own.mean, own.m2]).unsqueeze(0)
    with exchanging(who):
        ranks = process_group(group)
    before, after = (packed.new_zeros(n, *packed.shape[1:]) for n in (ranks.rank(), ranks.size() - ranks.rank() - 1))
    found = _Sum.apply(torch.cat([before, packed, after]), group, who)
    return Moments(*found.unbind(1)).union()


# ---- the kernels with an exchange in between ----


def _batch_norm(x: Tensor, *settings: Any) -> Four:
    *fields, mean, var, group, who = settings
    apply = Apply(*fields)
    backend = serving(x, apply)
    batch = _gathered(backend.moments(x, apply.mask), group, who)
    if mean is not None:
        alone = batch.count == 1
        batch = Moments(batch.count, torch.where(alone, mean, batch.mean), torch.where(alone, var, batch.m2))
    elif (x.is_cpu or x.numel() <= x.shape[1]) and (batch.count == 1).any():  # else it is not worth waiting for
        raise InvalidInputError(
            f"{who}: expected more than 1 value per channel over all ranks when training, got 1, with input of shape "
            f'{tuple(x.shape)} here. Use a larger batch, eval mode for a single example, or single_value="running".'
        )
    return backend.normalize(x, batch.mean, batch.var, apply), batch.count, batch.mean, batch.m2


def _backward(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, count: Tensor, *settings: Any) -> Four:
    """dx, empty where it is not wanted; this rank's dweight and dbias, (1, C); dresidual, empty if there is none or it
    is dy. `replaced`: where the count is 1, mean and variance do not depend on x."""
    *fields, replaced, wants_dx, group, who = settings
    apply = Apply(*fields)
    if not changes_dresidual(apply):
        apply = apply._replace(residual=None)
    backend = serving(x, apply, dy)
    own = backend.reduce_grad(dy, x, mean, var, apply)
    dx = dresidual = None
    if wants_dx or apply.residual is not None:
        sums = torch.stack(own)
        if wants_dx:
            with exchanging(who):
                dist.all_reduce(sums, group=process_group(group))
        if replaced:
            sums = torch.where(count == 1, 0, sums)
        dx, dresidual = backend.input_grad(dy, x, mean, var, apply, (sums[0], sums[1]), count)
    return _or_empty(dx if wants_dx else None, x), own[1], own[0], _or_empty(dresidual, x)


def _or_empty(gradient: Tensor | None, x: Tensor) -> Tensor:
    return x.new_empty(0) if gradient is None else gradient


def _differentiable_backward(
    dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, count: Tensor, *settings: Any
) -> tuple[Tensor | None, Tensor, Tensor, Tensor | None]:
    """`_backward` in operations that torch differentiates: statistics are functions of all ranks' x."""
    *fields, replaced, wants_dx, group, who = settings
    apply = Apply(*fields)
    mask = apply.mask
    if mask is not None:  # what it leaves out may be nan, which `where` keeps from results but not from a graph
        dy, x = torch.where(mask, dy, 0), torch.where(mask, x, 0)
        apply = apply._replace(residual=None if apply.residual is None else torch.where(mask, apply.residual, 0))
    if wants_dx:
        batch = _gathered_differentiably(eager.moments(x, mask), group, who)
        alone = (count == 1) & replaced
        mean, var = torch.where(alone, mean, batch.mean), torch.where(alone, var, batch.var)
        own = eager.reduce_grad(dy, x, mean, var, apply)
        sums = torch.where(alone, 0, _Sum.apply(torch.stack(own), group, who))
    else:
        own = eager.reduce_grad(dy, x, mean, var, apply)
        sums = torch.stack(own)
    dx, dresidual = eager.input_grad(dy, x, mean, var, apply, (sums[0], sums[1]), count)
    return dx if wants_dx else None, own[1], own[0], dresidual


# ---- autograd, for the function and for the operator ----


def _save(ctx: Any, inputs: tuple, output: Four) -> None:
    x, weight, bias, ctx.eps, residual, mask, ctx.activation, ctx.negative_slope, instead, _, ctx.group, ctx.who = (
        inputs
    )
    _, count, mean, m2 = output
    ctx.mark_non_differentiable(count, mean, m2)
    ctx.replaced, ctx.has_residual = instead is not None, residual is not None
    changes = changes_dresidual(Apply(weight, bias, ctx.eps, residual, mask, ctx.activation))
    var = Moments(count, mean, m2).var
    ctx.save_for_backward(x, mean, var, count, weight, bias, residual if changes else None, mask)


def _gradients(ctx: Any, dy: Tensor, kernel: Any) -> tuple[Tensor | None, ...]:
    x, mean, var, count, weight, bias, residual, mask = ctx.saved_tensors
    fields = weight, bias, ctx.eps, residual, mask, ctx.activation, ctx.negative_slope
    run = _differentiable_backward if torch.is_grad_enabled() else kernel
    wants_dx = ctx.needs_input_grad[0]
    dx, *own, dresidual = run(dy, x, mean, var, count, *fields, ctx.replaced, wants_dx, ctx.group, ctx.who)
    dweight, dbias = (None if p is None else d[0].to(p.dtype) for p, d in zip((weight, bias), own, strict=True))
    if residual is None:
        dresidual = dy if ctx.has_residual else None
    return dx if wants_dx else None, dweight, dbias, None, dresidual, *(None,) * 7


class _BatchNorm(torch.autograd.Function):
    forward = staticmethod(_batch_norm)
    setup_context = staticmethod(_save)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return _gradients(ctx, grad_outputs[0], _backward)


_batch_norm_op = torch.library.custom_op(
    "steadynorm::sync_batch_norm",
    _batch_norm,
    mutates_args=(),
    schema=f"(Tensor x, {SETTINGS}, Tensor? mean, Tensor? var, {_RANKS}) -> (Tensor, Tensor, Tensor, Tensor)",
)
_backward_op = torch.library.custom_op(
    "steadynorm::sync_batch_norm_backward",
    _backward,
    mutates_args=(),
    schema=(
        f"(Tensor dy, Tensor x, Tensor mean, Tensor var, Tensor count, {SETTINGS}, bool replaced, bool wants_dx, "
        f"{_RANKS}) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
)


def _per_channel(x: Tensor) -> Tensor:
    return x.new_empty(1, x.shape[1], dtype=statistics_dtype(x.device))


@_batch_norm_op.register_fake
def _(x: Tensor, *_: Any) -> Four:
    return torch.empty_like(x), _per_channel(x), _per_channel(x), _per_channel(x)


@_backward_op.register_fake
def _(dy: Tensor, x: Tensor, mean: Tensor, var: Tensor, count: Tensor, *settings: Any) -> Four:
    *fields, _, wants_dx, _, _ = settings
    dx = torch.empty_like(x) if wants_dx else x.new_empty(0)
    dresidual = torch.empty_like(x) if changes_dresidual(Apply(*fields)) else x.new_empty(0)
    return dx, _per_channel(x), _per_channel(x), dresidual


_batch_norm_op.register_autograd(lambda ctx, dy, *_: _gradients(ctx, dy, _backward_op), setup_context=_save)

for _operator in (_batch_norm_op, _backward_op):
    keep_in_order(_operator)
