"""BatchNorm1d, BatchNorm2d and BatchNorm3d: torch's layers, more exact and with the epilogue inside."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any, ClassVar

import torch
import torch.fx
from torch import Tensor

from ..errors import ChannelMismatchError, InvalidInputError
from ..functional import step, warn_of_poison
from ..inputs import check_activation, check_eps, check_momentum, check_single_value, prepare
from ..kernels import Apply
from ..kernels.running import Outcome, Running
from ..moments import Moments, statistics_dtype
from ..torch_internals import in_backward, in_graph
from .layer import Layer, Speaker, widened


class _BatchNorm(Layer, torch.nn.modules.batchnorm._BatchNorm):
    """What the three layers share; they differ in the shapes they take."""

    _shapes: ClassVar[dict[int, str]]
    _guard: Callable[[Any], None] | None = None
    """Told of a batch that is not finite and was kept out of the running statistics: see statistics/guard."""
    _collector: Callable[[Any, Moments], None] | None = None
    """Given the batch's moments instead of the running statistics: see statistics/accumulate."""
    _warned = False

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
        single_value: str = "raise",
    ) -> None:
        name = type(self).__name__
        if num_features < 0:
            raise ChannelMismatchError(f"{name}: expected num_features >= 0, got {num_features}.")
        check_eps(name, eps)
        if momentum is not None:
            check_momentum(name, momentum)
        check_activation(name, activation)
        check_single_value(name, single_value)
        wide = widened(dtype)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, wide, bias=bias)
        self.single_value = single_value
        self.activation = activation
        self.negative_slope = negative_slope

    def forward(self, input: Tensor, *, mask: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Normalizes `input`, adds `residual` (same shape) if given, and applies the activation.

        `mask` says which elements are real: bool, (N, *) or broadcastable to it, or the lengths (N,) of sequences.
        """
        if type(input) is not Tensor and isinstance(input, torch.fx.Proxy):
            return self._record(input, mask, residual)
        self._check_input_dim(input)
        recorded = in_graph()
        who, running = Speaker(self), self._running(recorded)
        try:
            parameters = self._parameters
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # another attribute of this name, as parametrizations have it
            weight, bias = self.weight, self.bias
        given = weight, bias, self.eps, residual, mask, self.activation, self.negative_slope
        x, apply, core = prepare(who, input, *given, running, self._is_by_batch(running), recorded)
        y, outcome = self._step(who, x, apply, core, running)
        if running.moves and not outcome.untouched:
            self._after(outcome)
        return y

    def _running(self, recorded: bool) -> Running:
        """The running statistics, and what is to become of them.

        They do not move where activations are recomputed inside a backward pass.

        Args:
            recorded: whether a graph is recorded: see `torch_internals.in_graph`.
        """
        moves = self.training and self.track_running_stats and (recorded or not in_backward())
        momentum = self.momentum if moves else 0.0
        if momentum is None:
            momentum = self._momentum()
        collects = self.training and self._collector is not None  # also where a forward is repeated: by the same route
        try:
            buffers = self._buffers
            mean, var, batches = buffers["running_mean"], buffers["running_var"], buffers.get("num_batches_tracked")
        except KeyError:
            mean, var, batches = self.running_mean, self.running_var, None
        return Running(mean, var, momentum, moves, self._guard is not None, collects, batches)

    def _momentum(self) -> float | Tensor:
        """Weight of the next batch in the running statistics."""
        if self.momentum is not None:
            return self.momentum
        tracked = self.num_batches_tracked
        return 0.0 if tracked is None else torch.reciprocal(tracked.to(statistics_dtype(tracked.device)) + 1)

    def _is_by_batch(self, running: Running) -> bool:
        """Whether the batch's own statistics normalize."""
        return self.training or (running.mean is None and running.var is None)

    def _step(
        self, who: object, x: Tensor, apply: Apply, core: ModuleType | None, running: Running
    ) -> tuple[Tensor, Outcome]:
        """Normalizes prepared data; what a layer with statistics of another kind does differently."""
        return step(who, x, apply, core, running, self._is_by_batch(running), self.single_value)

    def _after(self, outcome: Outcome) -> None:
        """Counts the batch, if nobody has, or hands it over; says so where it was not finite."""
        if outcome.batch is not None and self._collector is not None:
            self._collector(self, outcome.batch)
            return
        if not outcome.finite and self._guard is not None:
            self._guard(self)
            return
        if not outcome.counted and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        if not outcome.finite and not self._warned:
            self._warned = True
            warn_of_poison(self._speaker(), " steadynorm.guard_statistics keeps such batches out.")

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle has: not the contexts that the layer is in."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_guard", "_collector")}

    def extra_repr(self) -> str:
        if self.activation is None:
            return super().extra_repr()
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"{super().extra_repr()}, activation={self.activation!r}{slope}"

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

    `torch.nn.SyncBatchNorm.convert_sync_batchnorm` knows nothing of `activation` and would drop it; that of
    `steadynorm.SyncBatchNorm` keeps it.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance; positive (0 is allowed in eval mode).
        momentum: weight of the new batch in the running statistics, in [0, 1]; 0.1 here is 0.9 in Keras. None for the
            plain average over all batches so far.
        affine: learn weight (gamma, starts at 1) and bias (beta, starts at 0), each (C,).
        track_running_stats: keep running_mean and running_var, each (C,), and num_batches_tracked. Without them the
            batch's statistics normalize in eval mode too.
        device: of parameters and buffers.
        dtype: of parameters and buffers, which are float32 for a 16-bit dtype, also after `.half()` or `.bfloat16()`:
            16-bit running statistics would stand still. 16-bit inputs go with them.
        bias: with affine, learn a bias too.
        activation: applied inside the layer: "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "sigmoid",
            "tanh", or None.
        negative_slope: of leaky_relu.
        single_value: what to do in train mode with one value a channel: "raise", as torch, or "running", to normalize
            by the running statistics and leave them.

    Shape:
        input and residual: (N, C, H, W), in any memory order. Output: the same, with the input's dtype and order.
        mask: bool, (N, H, W) or broadcastable to it, True where an element is real. Only real elements count; the
            others' output and gradient are 0. `BatchNorm1d` also takes the integer lengths (N,) of sequences (N, C, L).

    A forward inside a backward pass (activation checkpointing) does not move the running statistics again. The first
    batch whose mean or variance is not finite warns (NonFiniteStatisticsWarning): it has entered them.

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
