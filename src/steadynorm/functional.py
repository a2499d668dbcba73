"""Batch normalization as a function, with torch's signature and more."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops
from .checks import check_pair, check_settings, check_single_value, check_tensors
from .errors import BatchedStatisticsError, ChannelMismatchError, InvalidInputError, NonFiniteStatisticsWarning
from .kernels import Apply, Running, eager, has_memory
from .masks import as_mask
from .moments import Moments
from .ops import fused, small


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float | Tensor = 0.1,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    negative_slope: float = 0.01,
    mask: Tensor | None = None,
    single_value: str = "raise",
    name: str = "batch_norm",
) -> Tensor:
    r"""Normalizes each channel over the batch and all positions, then scales, shifts, adds and activates.

    .. math:: y = f\Bigl(\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta + \text{residual}\Bigr)

    In training, mu and sigma² are the batch's own mean and variance (divided by n), and the running statistics move
    towards them: ``running += momentum * (batch - running)``, with the variance divided by n - 1. Otherwise they are
    the running statistics. Statistics are carried in float64; sums run over float32 elements (float64 ones
    of a float64 input).

    With a mask only real elements count, in statistics, gradients and running statistics; the others' output and
    gradient are 0. A batch without any real element leaves the running statistics.

    Args:
        input: floating-point data (N, C, *), in any memory order; N may be 0.
        running_mean: (C,), moved in place in training; None to keep no running statistics.
        running_var: (C,), likewise.
        weight: gamma (C,), or None for 1. Of input's dtype, or float32 for a 16-bit input.
        bias: beta (C,), or None for 0; likewise.
        training: normalize by the batch instead of by the running statistics.
        momentum: weight of the new batch in the running statistics, in [0, 1]; torch's convention (0.1 here is 0.9 in
            Keras). A 0-d tensor is taken as it is.
        eps: added to the variance; positive in training, non-negative otherwise.
        residual: added before the activation, shape of input.
        activation: one of "relu", "leaky_relu", "silu", "gelu", "sigmoid", "tanh", or None.
        negative_slope: of leaky_relu.
        mask: True where an element is real: bool, (N, *) or broadcastable to it; or the integer lengths (N,) of
            sequences (N, C, L).
        single_value: what to do in training with one value a channel, which has no variance: "raise", as torch, or
            "running", to normalize by the running statistics and leave them.
        name: who speaks in error messages.

    Returns:
        Tensor of input's shape, dtype and memory order (contiguous where input is not dense).

    Raises:
        InvalidInputError (a ValueError): fewer than two dimensions, one value a channel in training, or a mask of
            another dtype or shape.
        InvalidArgumentError (a ValueError): eps, momentum or activation out of range, or one running statistic
            without the other in training.
        ChannelMismatchError (a RuntimeError): a tensor whose shape or dtype does not fit input.
        UnsupportedDtypeError (a NotImplementedError): input is not of a real floating-point dtype.

    Warns:
        NonFiniteStatisticsWarning: an infinite or nan mean or variance entered the running statistics (looked at on
            the CPU only).

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, Alg. 1 (training) and Alg. 2 (inference).
    """
    running = Running(running_mean, running_var, momentum)
    apply = Apply(weight, bias, eps, residual, mask, activation, negative_slope)
    check_single_value(name, single_value)
    y = step(name, input, apply, running, training, single_value)
    if not running.finite:
        warn_of_poison(name)
    return y


def step(
    who: str, input: Tensor, apply: Apply, running: Running, training: bool, single_value: str = "raise"
) -> Tensor:
    """`batch_norm` for a layer, which says who speaks and looks at what happened: see `Running`.

    Args:
        who: who speaks in error messages.
        input, training, single_value: as in `batch_norm`.
        apply: the rest of `batch_norm`'s arguments; its mask is what the user passed.
        running: the running statistics, and what becomes of them.
    """
    x, apply = prepare(who, input, apply, running)
    check_settings(who, training, running.momentum, apply.eps, apply.activation)
    if training:
        check_pair(who, running.mean, running.var)
        values = values_per_channel(x, apply.mask)
        if values == 1 and single_value == "running" and running.mean is not None:
            training, running.untouched = False, True
        elif values == 1:
            raise InvalidInputError(
                f"{who}: expected more than 1 value per channel when training, got input of shape "
                f"{tuple(input.shape)}{'' if apply.mask is None else ' with one real element'}. Use a larger batch, "
                'eval mode for a single example, or single_value="running".'
            )
    return _train(who, x, apply, running) if training else evaluate(who, x, apply, running)


def prepare(who: str, input: Tensor, apply: Apply, running: Running) -> tuple[Tensor, Apply]:
    """What the user passed, checked, in dense memory, with the mask (N, 1, *)."""
    check_tensors(who, input, running.mean, running.var, apply.weight, apply.bias, apply.residual)
    if apply.residual is not None:
        apply = apply._replace(residual=ops.dense(apply.residual))
    if apply.mask is not None:
        apply = apply._replace(mask=as_mask(who, apply.mask, input))
    return ops.dense(input), apply


def values_per_channel(x: Tensor, mask: Tensor | None) -> int:
    """How many values of a channel are real; more than 1 where a mask on an accelerator would have to be waited for."""
    if mask is None:
        return x.numel() // x.shape[1] if x.shape[1] > 0 else 0
    if torch.compiler.is_compiling() or not mask.is_cpu or not has_memory(mask):
        return 2
    return int(mask.sum())


def evaluate(who: str, x: Tensor, apply: Apply, running: Running) -> Tensor:
    """Normalizes prepared data by the running statistics."""
    if running.mean is None or running.var is None:
        raise ChannelMismatchError(
            f"{who}: expected running_mean and running_var for training=False, got None. "
            "Pass both, or training=True to normalize by the batch."
        )
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return _evaluate_for_compiler(x, running.mean, running.var, apply)
    y = small.normalize(x, running.mean, running.var, apply)
    return ops.normalize(x, running.mean, running.var, apply) if y is None else y


def _train(who: str, x: Tensor, apply: Apply, running: Running) -> Tensor:
    """Normalizes prepared data by the batch, and moves the running statistics or collects the batch's moments."""
    momentum, compiling = running.momentum, torch.compiler.is_compiling()
    if isinstance(momentum, Tensor) and not compiling and momentum.is_cpu and has_memory(momentum):
        running.momentum = momentum = momentum.item()
    moving = running if running.moves and not running.collects else Running()
    if not isinstance(momentum, Tensor) and not compiling and not running.collects:
        for route in (small, fused):
            y = route.batch_norm(x, apply, moving)
            if y is not None:
                return y
    y, moments = ops.batch_norm(x, apply)
    if running.collects or x.numel() != 0:
        settle(who, running, moments)
    return y


def settle(who: str, running: Running, parts: Moments) -> None:
    """Moves the running statistics towards the moments of all parts (K, C) together, or hands these over as (1, C)."""
    if running.collects:
        running.batch = parts.union(keepdim=True)
    elif running.moves:
        update_running(who, running, parts.union(keepdim=True))


def update_running(who: str, running: Running, batch: Moments) -> None:
    """Moves the running statistics towards the batch's moments (1, C), in their float64, rounded once.

    Both move, or neither if one cannot be written. Channels of fewer than two values keep theirs. Guarded statistics
    stay where a moment is not finite.
    """
    if running.mean is None or running.var is None:
        return
    real = batch.count[0] > 1
    finite = (batch.mean.isfinite() & batch.m2.isfinite()).all()
    if running.guarded:
        real = real & finite
    pairs = ((running.mean, batch.mean[0]), (running.var, batch.var_unbiased[0]))
    move(who, pairs, running.momentum, real)
    if not torch.compiler.is_compiling() and finite.is_cpu and has_memory(finite):
        running.finite = bool(finite)


def move(who: str, pairs: tuple[tuple[Tensor, Tensor], ...], momentum: float | Tensor, real: Tensor) -> None:
    """Moves running statistics towards a batch's, in the batch's dtype, where `real`; all of them, or none."""
    moved: list[tuple[Tensor, Tensor]] = []
    try:
        for kept, new in pairs:
            old = kept.to(new.dtype, copy=True)
            kept.copy_(torch.where(real, old * (1 - momentum) + new.detach() * momentum, old))
            moved.append((kept, old))
    except RuntimeError as error:
        for kept, old in moved:
            kept.copy_(old)
        if "vmap" not in str(error):
            raise
        raise BatchedStatisticsError(
            f"{who}: expected running statistics for each of vmap's examples, got one set that all would update. "
            "Stack them (torch.func.stack_module_state), or build the layer with track_running_stats=False."
        ) from error


def warn_of_poison(who: str, remedy: str = "") -> None:
    """Warns that moments which are not finite have entered running statistics."""
    warnings.warn(
        f"{who}: the batch's mean or variance is not finite, and so are the running statistics from now on. "
        f"Look for inf or nan in the input.{remedy}",
        NonFiniteStatisticsWarning,
        stacklevel=4,
    )


def _evaluate_for_compiler(x: Tensor, mean: Tensor, var: Tensor, apply: Apply) -> Tensor:
    """Inference in torch's own operators, which a compiler fuses and an exported program runs anywhere."""
    residual = apply.residual
    if apply.mask is not None:  # what it leaves out may be nan, which `where` keeps from results but not from gradients
        x = torch.where(apply.mask, x, 0)
        residual = None if residual is None else torch.where(apply.mask, residual, 0)
    y = F.batch_norm(x, mean, var, apply.weight, apply.bias, False, 0.0, apply.eps)
    y = eager.activate(y if residual is None else y + residual, apply)
    return y if apply.mask is None else torch.where(apply.mask, y, 0)
