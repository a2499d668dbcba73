"""FrozenBatchNorm: fixed statistics and a fixed affine map, whatever the mode."""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
from torch import Tensor

from ..errors import ChannelMismatchError, InvalidArgumentError
from ..functional import evaluate
from ..inputs import check_activation, check_eps, prepare
from ..kernels.running import Running
from ..torch_internals import in_graph
from .layer import Layer, Speaker, widened

_TORCHS = torch.nn.modules.batchnorm._BatchNorm
STATE = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


class FrozenBatchNorm(Layer):
    r"""Batch normalization by fixed statistics with a fixed affine map, in train mode too.

    .. math:: y = f\Bigl(\frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} \gamma + \beta + \text{residual}\Bigr)

    mu and sigma² are `running_mean` and `running_var`. Everything the layer holds is a buffer: no optimizer finds it,
    `train()` changes nothing, and gradients go to the input and the residual only. State dicts are torch's BatchNorm's,
    and load strictly in both directions. It is not a subclass of torch's, so that what looks for batch normalization
    (`update_bn`, `convert_sync_batchnorm`) leaves it alone.

    Args:
        num_features: C, the number of channels, at least 0.
        eps: added to the variance, at least 0.
        affine: hold weight (gamma, 1) and bias (beta, 0), each (C,).
        device: of the buffers.
        dtype: of the buffers; float32 for a 16-bit dtype, also after `.half()` or `.bfloat16()`.
        bias: with affine, hold a bias too.
        activation: applied inside the layer: "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "sigmoid",
            "tanh", or None.
        negative_slope: of leaky_relu.

    Shape:
        input and residual: (N, C, *), in any memory order. Output: the same, with the input's dtype and order.
        mask: bool, (N, *) or broadcastable to it, or the integer lengths (N,) of sequences (N, C, L): outputs and
            gradients of elements that are not real are 0.

    Raises:
        InvalidArgumentError (a ValueError): eps or activation out of range.
        InvalidInputError (a ValueError): an input of one dimension, or a mask that does not fit.
        ChannelMismatchError (a RuntimeError): input or residual of a shape or dtype that does not fit, or a negative
            num_features.
        UnsupportedDtypeError (a NotImplementedError): an input that is not floating-point.

    Example::

        model.bn1 = sn.FrozenBatchNorm.from_batch_norm(model.bn1)  # for fine-tuning with small batches

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, Alg. 2; frozen for fine-tuning: He et al. 2016,
    arXiv:1512.03385, appendix A; Wu & Johnson 2021, arXiv:2105.07576, sec. 3.4.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    _original: torch.nn.Module | None = None
    """What the layer was: see surgery/freeze. No child, so that it has no part in state dicts and parameters."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        affine: bool = True,
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
        check_activation(name, activation)
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.affine = affine
        self.activation = activation
        self.negative_slope = negative_slope
        wide = widened(dtype)

        def filled(value: float) -> Tensor:
            return torch.full((num_features,), value, device=device, dtype=wide)

        self.register_buffer("weight", filled(1) if affine else None)
        self.register_buffer("bias", filled(0) if affine and bias else None)
        self.register_buffer("running_mean", filled(0))
        self.register_buffer("running_var", filled(1))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long, device=device))

    @classmethod
    def from_batch_norm(cls, layer: torch.nn.Module) -> FrozenBatchNorm:
        """A frozen copy of a layer of torch's or ours, in its mode, sharing no memory with it.

        Raises:
            InvalidArgumentError (a ValueError): `layer` is no batch normalization, or has no running statistics.
        """
        if not isinstance(layer, _TORCHS):
            raise InvalidArgumentError(
                f"{cls.__name__}.from_batch_norm: expected a batch normalization layer, got {type(layer).__name__}."
            )
        mean, var = layer.running_mean, layer.running_var
        if mean is None or var is None:
            raise InvalidArgumentError(
                f"{cls.__name__}.from_batch_norm: expected a layer with running_mean and running_var, got {layer} "
                "without them. There is nothing to freeze: train it with track_running_stats=True first."
            )
        frozen = cls(
            layer.num_features,
            layer.eps,
            layer.weight is not None,
            mean.device,
            mean.dtype,
            bias=layer.bias is not None,
            activation=getattr(layer, "activation", None),
            negative_slope=getattr(layer, "negative_slope", 0.01),
        )
        for name in STATE:
            given, kept = getattr(layer, name), getattr(frozen, name)
            if given is not None and kept is not None:
                kept.copy_(given.detach())
        return frozen.train(layer.training)

    def forward(self, input: Tensor, *, mask: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Normalizes `input`, adds `residual` (same shape) if given, and applies the activation.

        `mask` says which elements are real: bool, (N, *) or broadcastable to it, or the lengths (N,) of sequences.
        """
        if isinstance(input, torch.fx.Proxy):
            return self._record(input, mask, residual)
        who, running = Speaker(self), Running(self.running_mean, self.running_var)
        given = self.weight, self.bias, self.eps, residual, mask, self.activation, self.negative_slope
        x, apply, core = prepare(who, input, *given, running, False, in_graph())
        return evaluate(who, x, apply, running, core)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any, **named: Any) -> None:
        """A count of batches may be missing, as in torch's state dicts before version 2 and in torchvision's frozen."""
        state_dict.setdefault(prefix + "num_batches_tracked", self.num_batches_tracked)
        super()._load_from_state_dict(state_dict, prefix, *rest, **named)

    def extra_repr(self) -> str:
        activation = "" if self.activation is None else f", activation={self.activation!r}"
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"{self.num_features}, eps={self.eps}, affine={self.weight is not None}{activation}{slope}"
