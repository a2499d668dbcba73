"""BatchNorm1d, BatchNorm2d and BatchNorm3d: torch's layers, more exact and with the epilogue inside."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.fx
from torch import Tensor

from ..errors import ChannelMismatchError, InvalidInputError
from ..functional import batch_norm, check_activation, check_eps, check_momentum
from ..moments import statistics_dtype


class _BatchNorm(torch.nn.modules.batchnorm._BatchNorm):
    """What the three layers share; they differ in the shapes they take."""

    _shapes: ClassVar[dict[int, str]]

    def __init__(
        self,
        num_features: int,
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
    ) -> None:
        name = type(self).__name__
        if num_features < 0:
            raise ChannelMismatchError(f"{name}: expected num_features >= 0, got {num_features}.")
        check_eps(name, eps)
        if momentum is not None:
            check_momentum(name, momentum)
        check_activation(name, activation)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype, bias=bias)
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, input: Tensor, *, residual: Tensor | None = None) -> Tensor:
        """Normalizes `input`, adds `residual` (same shape) if given, and applies the activation."""
        if isinstance(input, torch.fx.Proxy):
            return self._record(input, residual)
        self._check_input_dim(input)
        batches = self.num_batches_tracked if self.training and self.track_running_stats else None
        momentum: float | Tensor = 0.0 if self.momentum is None else self.momentum
        if batches is not None and self.momentum is None:
            momentum = torch.reciprocal(batches.to(statistics_dtype(batches.device)) + 1)
        updates = not self.training or self.track_running_stats
        y = batch_norm(
            input,
            self.running_mean if updates else None,
            self.running_var if updates else None,
            self.weight,
            self.bias,
            training=self.training or (self.running_mean is None and self.running_var is None),
            momentum=momentum,
            eps=self.eps,
            residual=residual,
            activation=self.activation,
            negative_slope=self.negative_slope,
            name=self._speaker(),
        )
        if batches is not None:
            batches.add_(1)
        return y

    def _record(self, input: torch.fx.Proxy, residual: Any) -> Any:
        """The layer as one node of a graph traced by torch.fx, which treats only torch's own modules so by itself."""
        path = input.tracer.path_of_module(self)  # type: ignore[attr-defined]
        return input.tracer.create_proxy(
            "call_module", path, (input,), {} if residual is None else {"residual": residual}
        )

    def extra_repr(self) -> str:
        if self.activation is None:
            return super().extra_repr()
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"{super().extra_repr()}, activation={self.activation!r}{slope}"

    def _speaker(self) -> str:
        return f"{type(self).__name__}(num_features={self.num_features})"

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() not in self._shapes:
            expected = " or ".join(f"{dim}-D input {shape}" for dim, shape in self._shapes.items())
            raise InvalidInputError(
                f"{self._speaker()}: expected a {expected}, got {input.dim()}-D input of shape {tuple(input.shape)}. "
                "The first dimension is the batch, the second the channels."
            )


class BatchNorm1d(_BatchNorm, torch.nn.BatchNorm1d):
    """Batch normalization of (N, C) or (N, C, L) inputs; everything else as `BatchNorm2d`."""

    _shapes: ClassVar[dict[int, str]] = {2: "(N, C)", 3: "(N, C, L)"}


class BatchNorm2d(_BatchNorm, torch.nn.BatchNorm2d):
    r"""Batch normalization of (N, C, H, W) inputs: a drop-in for `torch.nn.BatchNorm2d`.

    .. math:: y = f\Bigl(\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta + \text{residual}\Bigr)

    In train mode mu and sigma² are the batch's mean and variance (divided by n) per channel over N, H and W, and the
    running statistics move towards them (the variance divided by n - 1); an empty batch leaves them. In eval mode mu
    and sigma² are the running statistics. State dicts are torch's, and load strictly in both directions.

    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` knows nothing of `activation`: it would drop it.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance; positive (0 is allowed in eval mode).
        momentum: weight of the new batch in the running statistics, in [0, 1]; 0.1 here is 0.9 in Keras. None for the
            plain average over all batches so far.
        affine: learn weight (gamma, starts at 1) and bias (beta, starts at 0), each (C,).
        track_running_stats: keep running_mean and running_var, each (C,), and num_batches_tracked. Without them the
            batch's statistics normalize in eval mode too.
        device: of parameters and buffers.
        dtype: of parameters and buffers. 16-bit inputs go with parameters of their dtype or float32.
        bias: with affine, learn a bias too.
        activation: applied inside the layer: "relu", "leaky_relu", "silu", "gelu", "sigmoid", "tanh", or None.
        negative_slope: of leaky_relu.

    Shape:
        input and residual: (N, C, H, W), in any memory order. Output: the same, with the input's dtype and order.

    Raises:
        InvalidArgumentError (a ValueError): eps, momentum or activation out of range.
        InvalidInputError (a ValueError): wrong number of dimensions, or one value a channel in train mode.
        ChannelMismatchError (a RuntimeError): input or residual of a shape or dtype that does not fit, or a negative
            num_features.
        UnsupportedDtypeError (a NotImplementedError): an input that is not floating-point.

    Example::

        block = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), sn.BatchNorm2d(16, activation="relu"))
        y = block(torch.randn(8, 3, 32, 32))

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, Alg. 1 and sec. 3.2.
    """

    _shapes: ClassVar[dict[int, str]] = {4: "(N, C, H, W)"}


class BatchNorm3d(_BatchNorm, torch.nn.BatchNorm3d):
    """Batch normalization of (N, C, D, H, W) inputs; everything else as `BatchNorm2d`."""

    _shapes: ClassVar[dict[int, str]] = {5: "(N, C, D, H, W)"}
