"""What a user passes, checked: messages say who, what was expected, what came, and what to do."""

from __future__ import annotations

import torch
from torch import Tensor

from .errors import ChannelMismatchError, InvalidArgumentError, InvalidInputError, UnsupportedDtypeError
from .kernels import ACTIVATIONS


def check_tensors(
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


def check_settings(who: str, training: bool, momentum: float | Tensor, eps: float, activation: str | None) -> None:
    check_eps(who, eps, training)
    check_momentum(who, momentum)
    check_activation(who, activation)


def check_pair(who: str, running_mean: Tensor | None, running_var: Tensor | None) -> None:
    """Raises InvalidArgumentError for one running statistic without the other."""
    if (running_mean is None) != (running_var is None):
        raise InvalidArgumentError(
            f"{who}: expected running_mean and running_var both or neither, got only "
            f"{'running_var' if running_mean is None else 'running_mean'}."
        )


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


def check_single_value(who: str, single_value: str) -> None:
    """Raises InvalidArgumentError for anything but "raise" and "running"."""
    if single_value not in ("raise", "running"):
        raise InvalidArgumentError(
            f'{who}: expected single_value "raise" or "running", got {single_value!r}. It says what to do in training '
            "with one value a channel."
        )
