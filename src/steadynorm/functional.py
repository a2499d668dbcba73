"""Batch normalization as a function, with torch's signature and more."""

from __future__ import annotations

import warnings
from types import ModuleType

from torch import Tensor

from . import ops
from .errors import ChannelMismatchError, InvalidInputError, NonFiniteStatisticsWarning
from .inputs import check_pair, check_single_value, prepare
from .kernels import Apply, readable
from .kernels.running import UNTOUCHED, Outcome, Running
from .torch_internals import in_graph


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
        activation: "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "sigmoid", "tanh", or None.
        negative_slope: of leaky_relu.
        mask: True where an element is real: bool, (N, *) or broadcastable to it; or the integer lengths (N,) of
            sequences (N, C, L).
        single_value: what to do in training with one value a channel, which has no variance: "raise", as torch, or
            "running", to normalize by the running statistics and leave them.
        name: the name that error messages begin with.

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
    check_single_value(name, single_value)
    given = weight, bias, eps, residual, mask, activation, negative_slope
    x, apply, core = prepare(name, input, *given, running, training, in_graph())
    y, outcome = step(name, x, apply, core, running, training, single_value)
    if not outcome.finite:
        warn_of_poison(name)
    return y


def step(
    who: object,
    x: Tensor,
    apply: Apply,
    core: ModuleType | None,
    running: Running,
    training: bool,
    single_value: str = "raise",
) -> tuple[Tensor, Outcome]:
    """`batch_norm` of prepared data for a layer, which looks at what was found.

    Args:
        who: the name that error messages begin with.
        x, apply, core: see `inputs.prepare`.
        running: the running statistics, and what is to become of them.
        training, single_value: as in `batch_norm`.
    """
    if training:
        if (running.mean is None) != (running.var is None):
            check_pair(who, running.mean, running.var)
        if (apply.mask is None and x.numel() > x.size(1)) or values_per_channel(x, apply.mask) != 1:
            return ops.train(who, x, apply, running, core)
        if single_value != "running" or running.mean is None:
            raise InvalidInputError(
                f"{who}: expected more than 1 value per channel when training, got input of shape "
                f"{tuple(x.shape)}{'' if apply.mask is None else ' with one real element'}. Use a larger batch, "
                'eval mode for a single example, or single_value="running".'
            )
    return evaluate(who, x, apply, running, core), UNTOUCHED


def values_per_channel(x: Tensor, mask: Tensor | None) -> int:
    """How many values of a channel are real; more than 1 where a mask on an accelerator would have to be waited for."""
    if mask is None:
        return x.numel() // max(x.size(1), 1)
    return int(mask.sum()) if readable(mask) else 2


def evaluate(who: object, x: Tensor, apply: Apply, running: Running, core: ModuleType | None = None) -> Tensor:
    """Normalizes prepared data by the running statistics."""
    if running.mean is None or running.var is None:
        raise ChannelMismatchError(
            f"{who}: expected running_mean and running_var for training=False, got None. "
            "Pass both, or training=True to normalize by the batch."
        )
    mean, var = running.mean, running.var
    if core is None:
        mean, var = mean.resolve_neg(), var.resolve_neg()
    return ops.normalize(x, mean, var, apply, core=core)


def warn_of_poison(who: object, remedy: str = "") -> None:
    """Warns that moments which are not finite have entered running statistics."""
    warnings.warn(
        f"{who}: the batch's mean or variance is not finite, and so are the running statistics from now on. "
        f"Look for inf or nan in the input.{remedy}",
        NonFiniteStatisticsWarning,
        stacklevel=4,
    )
