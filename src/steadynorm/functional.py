"""Batch normalization as a function, with torch's signature and more."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops
from .errors import (
    BatchedStatisticsError,
    ChannelMismatchError,
    InvalidArgumentError,
    InvalidInputError,
    UnsupportedDtypeError,
)
from .kernels import ACTIVATIONS, Apply, eager, has_memory
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
    name: str = "batch_norm",
) -> Tensor:
    r"""Normalizes each channel over the batch and all positions, then scales, shifts, adds and activates.

    .. math:: y = f\Bigl(\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta + \text{residual}\Bigr)

    In training, mu and sigma² are the batch's own mean and variance (divided by n), and the running statistics move
    towards them: ``running += momentum * (batch - running)``, with the variance divided by n - 1. Otherwise they are
    the running statistics. Statistics are carried in float64; sums run over float32 elements (float64 ones
    of a float64 input).

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
        name: who speaks in error messages.

    Returns:
        Tensor of input's shape, dtype and memory order (contiguous where input is not dense).

    Raises:
        InvalidInputError (a ValueError): fewer than two dimensions, or one value a channel in training.
        InvalidArgumentError (a ValueError): eps, momentum or activation out of range, or one running statistic
            without the other in training.
        ChannelMismatchError (a RuntimeError): a tensor whose shape or dtype does not fit input.
        UnsupportedDtypeError (a NotImplementedError): input is not of a real floating-point dtype.

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, Alg. 1 (training) and Alg. 2 (inference).
    """
    _check_tensors(name, input, running_mean, running_var, weight, bias, residual)
    _check_settings(name, training, momentum, eps, activation)
    x = ops.dense(input)
    residual = None if residual is None else ops.dense(residual)
    apply = Apply(weight, bias, eps, residual, None, activation, negative_slope)
    if not training:
        if running_mean is None or running_var is None:
            raise ChannelMismatchError(
                f"{name}: expected running_mean and running_var for training=False, got None. "
                "Pass both, or training=True to normalize by the batch."
            )
        if torch.compiler.is_compiling() or torch._C._is_tracing():
            return _evaluate(x, running_mean, running_var, apply)
        y = small.normalize(x, running_mean, running_var, apply)
        return ops.normalize(x, running_mean, running_var, apply) if y is None else y
    if (running_mean is None) != (running_var is None):
        raise InvalidArgumentError(
            f"{name}: expected running_mean and running_var both or neither, got only "
            f"{'running_var' if running_mean is None else 'running_mean'}."
        )
    if input.numel() == input.shape[1] != 0:
        raise InvalidInputError(
            f"{name}: expected more than 1 value per channel when training, got input of shape "
            f"{tuple(input.shape)}. Use a larger batch, or eval mode for a single example."
        )
    compiling = torch.compiler.is_compiling()
    if isinstance(momentum, Tensor) and not compiling and momentum.is_cpu and has_memory(momentum):
        momentum = momentum.item()
    if not isinstance(momentum, Tensor) and not compiling:
        for route in (small, fused):
            y = route.batch_norm(x, running_mean, running_var, apply, momentum)
            if y is not None:
                return y
    y, moments = ops.batch_norm(x, apply)
    if input.numel() != 0:
        _update_running(name, running_mean, running_var, moments, momentum)
    return y


def _update_running(
    name: str, running_mean: Tensor | None, running_var: Tensor | None, batch: Moments, momentum: float | Tensor
) -> None:
    """Moves the running statistics in the moments' float64, rounded once; both, or neither if one cannot be written."""
    if running_mean is None or running_var is None:
        return
    moved: list[tuple[Tensor, Tensor]] = []
    try:
        for running, new in ((running_mean, batch.mean), (running_var, batch.var_unbiased)):
            old = running.to(new.dtype, copy=True)
            running.copy_(old * (1 - momentum) + new[0].detach() * momentum)
            moved.append((running, old))
    except RuntimeError as error:
        for running, old in moved:
            running.copy_(old)
        if "vmap" not in str(error):
            raise
        raise BatchedStatisticsError(
            f"{name}: expected running statistics for each of vmap's examples, got one set that all would update. "
            "Stack them (torch.func.stack_module_state), or build the layer with track_running_stats=False."
        ) from error


def _evaluate(x: Tensor, mean: Tensor, var: Tensor, apply: Apply) -> Tensor:
    """Inference in torch's own operators, which a compiler fuses and an exported program runs anywhere."""
    y = F.batch_norm(x, mean, var, apply.weight, apply.bias, False, 0.0, apply.eps)
    return eager.activate(y if apply.residual is None else y + apply.residual, apply)


def _check_tensors(
    who: str,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
) -> None:
    shape = tuple(input.shape)
    if len(shape) < 2:
        raise InvalidInputError(f"{who}: expected an input (N, C, *), got {len(shape)}-D input of shape {shape}.")
    if not input.is_floating_point():
        raise UnsupportedDtypeError(
            f"{who}: expected a floating-point input, got {input.dtype} of shape {shape}. "
            "Convert it with input.float()."
        )
    channels = shape[1]
    named = {"running_mean": running_mean, "running_var": running_var, "weight": weight, "bias": bias}
    for name, tensor in named.items():
        if tensor is None:
            continue
        if tensor.device != input.device:
            raise ChannelMismatchError(
                f"{who}: expected {name} on the input's device {input.device}, got {tensor.device}. "
                "Move the layer or the input with .to(device)."
            )
        if tensor.dim() != 1 or tensor.shape[0] != channels:
            raise ChannelMismatchError(
                f"{who}: expected {name} with one value for each of the {channels} channels of the input of shape "
                f"{shape}, got {name} of shape {tuple(tensor.shape)}."
            )
        if tensor.dtype != input.dtype and (tensor.dtype != torch.float32 or input.dtype == torch.float64):
            raise ChannelMismatchError(
                f"{who}: expected {name} of the input's dtype {input.dtype} (or float32 for 16-bit inputs), "
                f"got {tensor.dtype}. Convert one of them with .to(dtype)."
            )
    if residual is None:
        return
    if (residual.shape, residual.dtype, residual.device) != (input.shape, input.dtype, input.device):
        raise ChannelMismatchError(
            f"{who}: expected a residual of the input's shape {shape}, dtype {input.dtype} and device {input.device}, "
            f"got shape {tuple(residual.shape)}, dtype {residual.dtype} and device {residual.device}. Convert it with "
            "residual.to(input), or add it after the layer."
        )


def _check_settings(who: str, training: bool, momentum: float | Tensor, eps: float, activation: str | None) -> None:
    check_eps(who, eps, training)
    check_momentum(who, momentum)
    check_activation(who, activation)


def check_eps(who: str, eps: float, training: bool = False) -> None:
    """Raises InvalidArgumentError for an eps that is negative or nan, or 0 in training."""
    if not eps >= 0 or (training and eps == 0):
        bound = "> 0 in training" if training else ">= 0"
        raise InvalidArgumentError(f"{who}: expected eps {bound}, got {eps}. The usual value is 1e-5.")


def check_momentum(who: str, momentum: float | Tensor) -> None:
    """Raises InvalidArgumentError for a momentum outside [0, 1]."""
    if not isinstance(momentum, Tensor) and not 0 <= momentum <= 1:
        raise InvalidArgumentError(
            f"{who}: expected momentum in [0, 1], got {momentum}. It is the weight of the new batch: 0.1 here is 0.9 "
            "in Keras."
        )


def check_activation(who: str, activation: str | None) -> None:
    """Raises InvalidArgumentError for an activation no kernel applies."""
    if activation is not None and activation not in ACTIVATIONS:
        raise InvalidArgumentError(
            f"{who}: expected activation None or one of {', '.join(ACTIVATIONS)}, got {activation!r}. "
            "Put any other activation after the layer."
        )
