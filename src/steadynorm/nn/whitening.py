"""WhiteningBatchNorm: channels decorrelated, not only scaled."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InvalidArgumentError, InvalidInputError
from ..kernels import Apply, eager, readable
from ..kernels.running import FINE, UNTOUCHED, Outcome, Running, move
from ..moments import statistics_dtype
from .batchnorm import _BatchNorm
from .inverse_root import by_eigenvalues, by_newton

METHODS = ("iternorm", "zca")


class WhiteningBatchNorm(_BatchNorm):
    r"""Whitening of (N, C, *) inputs: in each group of channels, variance 1 and no correlation.

    .. math:: y = f\bigl(\gamma \odot (\Sigma + \epsilon I)^{-1/2} (x - \mu) + \beta + \text{residual}\bigr)

    In train mode mu (C,) and Sigma (group_size, group_size), one for each group of consecutive channels, are the mean
    and covariance (divided by n) over N and all positions; running_mean and running_covariance move towards them (the
    covariance divided by n - 1). In eval mode they are the running ones, so that the layer is one linear map. The
    symmetric root is the whitening that changes x least (ZCA). It is batch normalization without the shortcut that
    Ioffe & Szegedy take in sec. 3: with ``group_size=1``, it is `BatchNorm2d`.

    Gradients of any order go through mean and covariance, also where eigenvalues are equal.

    Args:
        num_features: C, the number of channels.
        group_size: channels that are whitened together, a divisor of C; None for all of them.
        method: how the inverse root is taken: "iternorm", by `iterations` steps of Newton's iteration, which stop
            short of amplifying directions of small variance; or "zca", exactly, by eigenvalues.
        iterations: of "iternorm", at least 1.
        eps: added to the variances, positive (0 is allowed in eval mode).
        momentum, affine, track_running_stats, device, dtype, bias, activation, negative_slope: as in `BatchNorm2d`.
        single_value: what to do in train mode with too few values, at most group_size a channel, whose covariance is
            singular: "raise", or "running", to whiten by the running statistics and leave them.

    Attributes:
        running_mean: (C,).
        running_covariance: (C / group_size, group_size, group_size), which stands for torch's running_var.

    Shape:
        input and residual: (N, C, *), in any memory order. Output: the same, with the input's dtype and order.
        mask: bool, (N, *) or broadcastable to it, or the integer lengths (N,) of sequences (N, C, L): only real
            elements count; the others' output and gradient are 0.

    Matrices are float64 inside (float32 on mps), elements float32 (float64 for float64). `accumulate_statistics`
    refuses it, and `reduce_statistics_`: they know no covariances.

    Raises:
        InvalidArgumentError (a ValueError): group_size no divisor of num_features, an unknown method, iterations below
            1; the rest as `BatchNorm2d`.
        InvalidInputError (a ValueError): too few values in train mode; the rest as `BatchNorm2d`.

    Example::

        layer = sn.WhiteningBatchNorm(64, group_size=16)
        y = layer(torch.randn(32, 64, 14, 14))

    Reference: Huang, Yang, Lang & Deng 2018, arXiv:1804.08450 (ZCA); Huang, Zhou, Zhu, Liu & Shao 2019,
    arXiv:1904.03441 (IterNorm).
    """

    running_covariance: Tensor | None

    def __init__(
        self,
        num_features: int,
        group_size: int | None = None,
        method: str = "iternorm",
        iterations: int = 5,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        negative_slope: float = 0.01,
        single_value: str = "raise",
    ) -> None:
        _check_whitening(type(self).__name__, num_features, group_size, method, iterations)
        super().__init__(
            num_features,
            eps,
            momentum,
            affine,
            track_running_stats,
            device,
            dtype,
            bias=bias,
            activation=activation,
            negative_slope=negative_slope,
            single_value=single_value,
        )
        self.group_size = num_features if group_size is None else group_size
        self.method = method
        self.iterations = iterations
        self.running_var = None
        size = self.group_size
        like = self.running_mean
        self.register_buffer(
            "running_covariance", None if like is None else like.new_empty(num_features // max(size, 1), size, size)
        )
        self.reset_running_stats()

    def reset_running_stats(self) -> None:
        """Mean 0, covariance the identity, no batches."""
        if not self.track_running_stats or self.running_mean is None or self.num_batches_tracked is None:
            return
        self.running_mean.zero_()
        self.num_batches_tracked.zero_()
        covariance = getattr(self, "running_covariance", None)  # torch's constructor comes here before there is one
        if covariance is not None:
            covariance.copy_(torch.eye(self.group_size, dtype=covariance.dtype, device=covariance.device))

    @torch.no_grad()
    def linear_map(self) -> tuple[Tensor, Tensor]:
        """The one linear map that eval mode is, before residual and activation.

        Returns:
            matrix (C / group_size, group_size, group_size) and shift (C,), of the running statistics' dtype: a group's
            channels become matrix @ x + shift, so that the layer is a 1x1 convolution of as many groups::

                matrix, shift = layer.linear_map()
                y = F.conv2d(x, matrix.reshape(C, group_size, 1, 1), shift, groups=len(matrix))

        Raises:
            InvalidArgumentError (a ValueError): the layer has no running statistics.
        """
        mean, covariance = self._statistics()
        matrix = self._matrix(covariance, self.weight)
        shift = -(matrix @ mean).flatten()
        if self.bias is not None:
            shift = shift + self.bias
        dtype = self.get_buffer("running_mean").dtype
        return matrix.to(dtype), shift.to(dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        """Any (N, C, *), which is checked with the rest."""

    def _is_by_batch(self, running: Running) -> bool:
        return self.training or running.mean is None

    def _step(
        self, who: object, x: Tensor, apply: Apply, core: ModuleType | None, running: Running
    ) -> tuple[Tensor, Outcome]:
        size, by_batch = self.group_size, self._is_by_batch(running)
        if running.collects:
            raise InvalidArgumentError(
                f"{who}: expected to move its statistics itself, got accumulate_statistics, which knows no "
                "covariances. Accumulate over the other layers only."
            )
        count = x.numel() // max(x.shape[1], 1) if apply.mask is None else apply.mask.sum()
        few = by_batch and _is_few(count, size)
        if few:
            if self.single_value == "raise" or running.mean is None:
                raise InvalidInputError(
                    f"{who}: expected more than group_size={size} values per channel when training, got {int(count)} "
                    f"from an input of shape {tuple(x.shape)}, whose covariance is singular. Use a larger batch, a "
                    'smaller group_size, or single_value="running".'
                )
            by_batch = False
        with torch.autocast(x.device.type, enabled=False):  # which would multiply matrices in 16 bits
            data = _by_groups(x, size)
            real = None if apply.mask is None else apply.mask.flatten()
            sample = _measure(data, real, count) if by_batch else _given(data, real, *self._statistics())
            y = _natural(self._whiten(sample, apply), x)
        outcome = UNTOUCHED if few else FINE
        if by_batch and running.moves:
            outcome = self._move(who, sample, running)
        return _finish(y, apply, x.dtype), outcome

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Running mean (G, d, 1) and covariance (G, d, d), float64."""
        mean, covariance = self.running_mean, self.running_covariance
        if mean is None or covariance is None:
            raise InvalidArgumentError(
                f"{self._speaker()}: expected running_mean and running_covariance, got None. Without them every batch "
                "has its own linear map; build the layer with track_running_stats=True."
            )
        wide = statistics_dtype(mean.device)
        return mean.to(wide).reshape(*covariance.shape[:2], 1), covariance.to(wide)

    def _matrix(self, covariance: Tensor, weight: Tensor | None) -> Tensor:
        """weight * (covariance + eps)^(-1/2)."""
        if self.method == "zca":
            matrix = by_eigenvalues(covariance, self.eps)
        else:
            matrix = by_newton(covariance, self.eps, self.iterations)
        return matrix if weight is None else weight.reshape(len(matrix), -1, 1) * matrix

    def _whiten(self, sample: _Sample, apply: Apply) -> Tensor:
        matrix = self._matrix(sample.covariance, apply.weight)
        shift = -(matrix @ sample.rest)
        if apply.bias is not None:
            shift = shift + apply.bias.reshape(shift.shape)
        data = sample.centred
        return torch.baddbmm(shift.to(data.dtype), matrix.to(data.dtype), data)

    @torch.no_grad()
    def _move(self, who: object, sample: _Sample, running: Running) -> Outcome:
        """Moves the running statistics, unless there is one value, or a guard finds one that is not finite."""
        if running.mean is None or self.running_covariance is None:
            return FINE
        mean, covariance = sample.mean.flatten(), sample.covariance
        finite = mean.isfinite().all() & covariance.isfinite().all()
        count = (
            sample.number if isinstance(sample.number, Tensor) else torch.full((), sample.number, device=mean.device)
        )
        count = count.to(mean.dtype)
        unbiased = covariance * (count / (count - 1).clamp(min=1))
        pairs = ((running.mean, mean), (self.running_covariance, unbiased))
        return move(who, running, pairs, count > 1, finite)

    def extra_repr(self) -> str:
        method = f"{self.method!r}, iterations={self.iterations}" if self.method == "iternorm" else f"{self.method!r}"
        return f"{super().extra_repr()}, group_size={self.group_size}, method={method}"


class _Sample(NamedTuple):
    """Channels in groups (G, d, M), minus their mean as they can hold it, and statistics in their own dtype.

    The mean and what rounding took from it are (G, d, 1), the covariance (G, d, d); so many values are real.
    """

    centred: Tensor
    mean: Tensor
    rest: Tensor
    covariance: Tensor
    number: int | Tensor


def _check_whitening(who: str, features: int, group_size: int | None, method: str, iterations: int) -> None:
    if method not in METHODS:
        raise InvalidArgumentError(f"{who}: expected method {' or '.join(map(repr, METHODS))}, got {method!r}.")
    if iterations < 1:
        raise InvalidArgumentError(f"{who}: expected iterations >= 1, got {iterations}. The usual number is 5.")
    if group_size is not None and (not isinstance(group_size, int) or group_size < 1 or features % group_size != 0):
        divisors = ", ".join(str(size) for size in range(1, features + 1) if features % size == 0)
        raise InvalidArgumentError(
            f"{who}: expected a group_size that divides num_features={features}, got {group_size}. "
            f"Take one of {divisors}."
        )


def _is_few(count: int | Tensor, size: int) -> bool:
    """Whether a covariance of so many values is singular; False where that would have to be waited for."""
    if isinstance(count, Tensor) and not readable(count):
        return False
    return 0 < int(count) <= size


def _by_groups(x: Tensor, size: int) -> Tensor:
    """(N, C, *) → (G, d, M), of the dtype elements are computed in."""
    data = x if x.dtype == torch.float64 else x.float()
    values = x.numel() // max(x.shape[1], 1)
    return data.movedim(1, 0).reshape(x.shape[1] // max(size, 1), size, values)


def _natural(y: Tensor, like: Tensor) -> Tensor:
    """(G, d, M) → the shape and memory order of `like`."""
    y = y.reshape(like.shape[1], like.shape[0], *like.shape[2:]).movedim(0, 1)
    return y.contiguous() if like.is_contiguous() else y.movedim(1, -1).contiguous().movedim(-1, 1)


def _measure(data: Tensor, real: Tensor | None, count: int | Tensor) -> _Sample:
    """Mean and covariance of the real values, by the corrected two-pass algorithm; see `moments.measure`."""
    wide = statistics_dtype(data.device)
    number = max(count, 1) if isinstance(count, int) else count.clamp(min=1)
    kept = data.detach() if real is None else torch.where(real, data.detach(), 0)
    shift = kept.sum(-1, keepdim=True) / number
    centred = data - shift
    centred = centred if real is None else torch.where(real, centred, 0)
    rest = centred.sum(-1, keepdim=True).to(wide) / number
    covariance = (centred @ centred.mT).to(wide) / number - rest @ rest.mT
    return _Sample(centred, shift + rest, rest, covariance, count)


def _given(data: Tensor, real: Tensor | None, mean: Tensor, covariance: Tensor) -> _Sample:
    """Running statistics, and the data centred by them."""
    centred = data - mean.to(data.dtype)
    centred = centred if real is None else torch.where(real, centred, 0)
    return _Sample(centred, mean, mean - mean.to(data.dtype), covariance, 0)


def _finish(y: Tensor, apply: Apply, dtype: torch.dtype) -> Tensor:
    """Residual, activation and mask."""
    residual, mask = apply.residual, apply.mask
    if residual is not None:
        y = y + (residual if mask is None else torch.where(mask, residual, 0))
    y = eager.activate(y, apply)
    return (y if mask is None else torch.where(mask, y, 0)).to(dtype)
