"""The border: what a user passes is checked and laid out here, once; everything below trusts it.

Messages say who, what was expected, what came, and what to do.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from . import kernels
from .errors import ChannelMismatchError, InvalidArgumentError, InvalidInputError, UnsupportedDtypeError
from .kernels import ACTIVATIONS, Apply, readable
from .kernels.running import Running

_ACTIVATIONS = (None, *ACTIVATIONS)


def prepare(
    who: object,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None,
    mask: Tensor | None,
    activation: str | None,
    negative_slope: float,
    running: Running,
    training: bool,
    recorded: bool,
) -> tuple[Tensor, Apply, ModuleType | None]:
    """All that `batch_norm` takes, as the user gave it, checked: in dense memory, with the mask (N, 1, *).

    Args:
        who: the name that error messages begin with, or an object whose str() gives it when there is an error.
        training: whether the batch's own statistics normalize.
        recorded: whether a graph is recorded: see `torch_internals.in_graph`.

    Returns:
        The data; what happens to it; and the compiled core, where it has found at once that all is in order, and
        computes with these tensors as they are. Else None, which says nothing.
    """
    mean, var, momentum, *_ = running
    core = None if recorded or mask is not None else kernels.compiled()
    if core is None or not core.takes(input, residual, weight, bias, mean, var):
        core = None
        _check_tensors(who, input, residual, mean, var, weight, bias)
        input = dense(input)
        weight, bias = (values if values is None else values.resolve_neg() for values in (weight, bias))
        residual = None if residual is None else dense(residual)
        mask = None if mask is None else as_mask(who, mask, input)
    # Looked at here as well as in the checks: to call each of them would take longer than all of these lines.
    if not eps > 0:
        check_eps(who, eps, training)
    if type(momentum) is not float or not 0 <= momentum <= 1:
        check_momentum(who, momentum)
    if activation not in _ACTIVATIONS:
        check_activation(who, activation)
    return input, Apply(weight, bias, eps, residual, mask, activation, negative_slope), core


def _check_tensors(
    who: object,
    input: Tensor,
    residual: Tensor | None,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
) -> None:
    """Raises what `batch_norm` documents unless each tensor fits the input."""
    if input.dim() < 2:
        raise InvalidInputError(
            f"{who}: expected an input (N, C, *), got {input.dim()}-D input of shape {_sizes(input)}."
        )
    if not input.is_floating_point():
        raise UnsupportedDtypeError(
            f"{who}: expected a floating-point input, got {input.dtype} of shape {_sizes(input)}. "
            "Convert it with input.float()."
        )
    dtype, device, size = input.dtype, input.device, input.shape[1:2]
    for tensor, name in ((mean, "running_mean"), (var, "running_var"), (weight, "weight"), (bias, "bias")):
        if tensor is None or (tensor.dtype is dtype and tensor.shape == size and tensor.device == device):
            continue
        _check_per_channel(who, name, tensor, input)
    if residual is not None:
        _check_residual(who, residual, input)


def dense(x: Tensor) -> Tensor:
    """`x` itself if its memory is dense with channels first or last, else a contiguous copy."""
    x = x.resolve_neg()  # a part of a complex tensor may have its sign in a bit beside it
    if x.is_contiguous() or x.movedim(1, -1).is_contiguous():
        return x
    return x.contiguous()


def _sizes(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _check_per_channel(who: object, name: str, tensor: Tensor, input: Tensor) -> None:
    """Raises ChannelMismatchError unless it has a value for each channel, of a dtype and on a device that fit."""
    channels = input.shape[1]
    if tensor.device != input.device:
        raise ChannelMismatchError(
            f"{who}: expected {name} on the input's device {input.device}, got {tensor.device}. "
            "Move the layer or the input with .to(device)."
        )
    if tensor.dim() != 1 or tensor.shape[0] != channels:
        raise ChannelMismatchError(
            f"{who}: expected {name} with one value for each of the {channels} channels of the input of shape "
            f"{_sizes(input)}, got {name} of shape {_sizes(tensor)}."
        )
    if tensor.dtype != input.dtype and (tensor.dtype != torch.float32 or input.dtype == torch.float64):
        raise ChannelMismatchError(
            f"{who}: expected {name} of the input's dtype {input.dtype} (or float32 for 16-bit inputs), "
            f"got {tensor.dtype}. Convert one of them with .to(dtype)."
        )


def _check_residual(who: object, residual: Tensor, input: Tensor) -> None:
    if (residual.shape, residual.dtype, residual.device) != (input.shape, input.dtype, input.device):
        raise ChannelMismatchError(
            f"{who}: expected a residual of the input's shape {_sizes(input)}, dtype {input.dtype} and device "
            f"{input.device}, got shape {_sizes(residual)}, dtype {residual.dtype} and device {residual.device}. "
            "Convert it with residual.to(input), or add it after the layer."
        )


def check_pair(who: object, running_mean: Tensor | None, running_var: Tensor | None) -> None:
    """Raises InvalidArgumentError for one running statistic without the other."""
    if (running_mean is None) != (running_var is None):
        raise InvalidArgumentError(
            f"{who}: expected running_mean and running_var both or neither, got only "
            f"{'running_var' if running_mean is None else 'running_mean'}."
        )


def check_eps(who: object, eps: float, training: bool = False) -> None:
    """Raises InvalidArgumentError for an eps that is negative or nan, or 0 in training."""
    if not eps >= 0 or (training and eps == 0):
        bound = "> 0 in training" if training else ">= 0"
        raise InvalidArgumentError(f"{who}: expected eps {bound}, got {eps}. The usual value is 1e-5.")


def check_momentum(who: object, momentum: float | Tensor) -> None:
    """Raises InvalidArgumentError for a momentum outside [0, 1]."""
    if not isinstance(momentum, Tensor) and not 0 <= momentum <= 1:
        raise InvalidArgumentError(
            f"{who}: expected momentum in [0, 1], got {momentum}. It is the weight of the new batch: 0.1 here is 0.9 "
            "in Keras."
        )


def check_activation(who: object, activation: str | None) -> None:
    """Raises InvalidArgumentError for an activation no kernel applies."""
    if activation is not None and activation not in ACTIVATIONS:
        raise InvalidArgumentError(
            f"{who}: expected activation None or one of {', '.join(ACTIVATIONS)}, got {activation!r}. "
            "Put any other activation after the layer."
        )


def check_single_value(who: object, single_value: str) -> None:
    """Raises InvalidArgumentError for anything but "raise" and "running"."""
    if single_value not in ("raise", "running"):
        raise InvalidArgumentError(
            f'{who}: expected single_value "raise" or "running", got {single_value!r}. It says what to do in training '
            "with one value a channel."
        )


# ---- masks ----

_HINT = "Pass a bool mask (N, *), True where an element is real, or the lengths (N,) of sequences (N, C, L)."


def as_mask(who: object, mask: Tensor, input: Tensor) -> Tensor:
    """The mask of `input`, (N, C, *), with one value for each element that all channels share.

    Args:
        who: the name that error messages begin with.
        mask: bool, (N, *) or (N, 1, *), each size as the input's or 1; or integer lengths (N,) of sequences (N, C, L),
            from 0 to L, of which the first so many positions are real.
        input: the data.

    Returns:
        bool (N, 1, *), contiguous.

    Raises:
        InvalidInputError (a ValueError): a mask of another dtype or shape, lengths out of range, or lengths of an input
            that is not (N, C, L).
    """
    if mask.device != input.device:
        raise InvalidInputError(
            f"{who}: expected a mask on the input's device {input.device}, got {mask.device}. Move it with .to(device)."
        )
    if mask.dtype == torch.bool:
        return _from_bool(who, mask, input)
    if mask.is_floating_point() or mask.is_complex():
        raise InvalidInputError(f"{who}: expected a bool mask or integer lengths, got {mask.dtype}. {_HINT}")
    return _from_lengths(who, mask, input)


def _from_bool(who: object, mask: Tensor, input: Tensor) -> Tensor:
    shape = (input.shape[0], 1, *input.shape[2:])
    full = mask.unsqueeze(1) if mask.dim() == input.dim() - 1 else mask
    if full.dim() != input.dim() or any(
        given != 1 and given != size for given, size in zip(full.shape, shape, strict=True)
    ):
        raise InvalidInputError(
            f"{who}: expected a mask of shape {(shape[0], *shape[2:])} or {shape} for the input of shape "
            f"{tuple(input.shape)}, got {tuple(mask.shape)}. {_HINT}"
        )
    return full.expand(shape).contiguous()


def _from_lengths(who: object, lengths: Tensor, input: Tensor) -> Tensor:
    if input.dim() != 3 or lengths.shape != input.shape[:1]:
        raise InvalidInputError(
            f"{who}: expected lengths of shape (N,) for an input (N, C, L), got lengths of shape "
            f"{tuple(lengths.shape)} and input of shape {tuple(input.shape)}. {_HINT}"
        )
    longest = input.shape[2]
    if readable(lengths) and lengths.numel() > 0:
        low, high = int(lengths.min()), int(lengths.max())
        if low < 0 or high > longest:
            raise InvalidInputError(
                f"{who}: expected lengths from 0 to {longest}, the positions of the input, got {low} to {high}."
            )
    positions = torch.arange(longest, device=lengths.device)
    return (positions < lengths.unsqueeze(1)).unsqueeze(1)
