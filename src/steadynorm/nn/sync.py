"""SyncBatchNorm: batch normalization over the batches of all ranks of a process group."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import ChannelMismatchError, InvalidArgumentError, InvalidInputError, SynchronizationError
from ..inputs import check_pair
from ..kernels import Apply, readable
from ..kernels.running import UNTOUCHED, Outcome, Running, settle
from ..ops import sync
from .batchnorm import _BatchNorm
from .convertible import dimensions, has_known_forward, is_uninitialized


class SyncBatchNorm(_BatchNorm):
    r"""Batch normalization over the batches of all ranks, as one process would normalize all of them together.

    .. math::
        n = \sum_r n_r, \quad \mu = \sum_r \frac{n_r}{n} \mu_r, \quad
        \sigma^2 = \frac{1}{n} \sum_r \bigl(m_{2,r} + n_r (\mu_r - \mu)^2\bigr)

    In train mode the ranks exchange (count, mean, m2) of their real elements, once forward, and two sums per channel,
    once backward; all get the same statistics, and move the same running statistics. In eval mode, without a process
    group or with one rank it is plain batch normalization and exchanges nothing. Any torch.distributed backend: gloo on
    the CPU, NCCL on GPUs. `torch.nn.SyncBatchNorm` takes GPU tensors only.

    **Every rank must call the layer equally often**, forward and backward, with an empty batch (0, C, *) where it has
    no data. The input asks for a gradient on all ranks or on none. The gradients of weight and bias are this rank's own
    sums, as torch's: `DistributedDataParallel` averages them, as it does those of every parameter.

    State dicts are those of torch's layers. Not a subclass of `torch.nn.SyncBatchNorm`, of which
    `DistributedDataParallel` refuses every instance on the CPU.

    Args:
        num_features: C, the number of channels.
        eps: added to the variance; positive (0 is allowed in eval mode).
        momentum: weight of the new batch in the running statistics, in [0, 1]; None for the plain average of all.
        affine: learn weight (gamma, starts at 1) and bias (beta, starts at 0), each (C,).
        track_running_stats: keep running_mean and running_var, each (C,), and num_batches_tracked.
        process_group: the ranks that share statistics, of which this rank is one; all of them by default.
        device: of parameters and buffers.
        dtype: of parameters and buffers, which are float32 for a 16-bit dtype; 16-bit inputs go with them.
        bias: with affine, learn a bias too.
        activation: applied inside the layer: "relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "sigmoid",
            "tanh", or None.
        negative_slope: of leaky_relu.
        single_value: what to do in train mode where all ranks together have one value a channel: "raise", or "running",
            to normalize by the running statistics and leave them. Not looked at on an accelerator whose rank has more
            than one value a channel, masked ones counted, as it would have to be waited for.

    Shape:
        input and residual: (N, C, *), at least two dimensions, floating-point, in any memory order; N, which may be 0,
        and the sizes after C may differ from rank to rank. Output: the same, with the input's dtype and memory order.
        mask: bool, (N, *) or broadcastable to it, True where an element is real, or lengths (N,) of (N, C, L).

    Derivatives of any order, in reverse mode; not under vmap. Under `torch.compile` each direction is one operator in
    one graph, kept in order; there, num_batches_tracked also counts what single_value="running" leaves out.

    Raises:
        InvalidArgumentError (a ValueError): eps, momentum or activation out of range, or a process group that this rank
            is not in.
        InvalidInputError (a ValueError): fewer than two dimensions, or one value a channel over all ranks.
        ChannelMismatchError (a RuntimeError): input or residual of a shape or dtype that does not fit.
        UnsupportedDtypeError (a NotImplementedError): an input that is not floating-point.
        SynchronizationError (a RuntimeError): a rank is gone or does not come within the process group's timeout, which
            is `init_process_group(timeout=...)`; or process_group is given and torch.distributed not initialized.
            Running statistics are then as before. With NCCL, torch's watchdog may end the process first.

    Example::

        model = sn.SyncBatchNorm.convert_sync_batchnorm(model)
        model = torch.nn.parallel.DistributedDataParallel(model)

    Reference: Ioffe & Szegedy 2015, arXiv:1502.03167, Alg. 1; Chan, Golub & LeVeque 1983 for the merge.
    """

    _path: str | None = None
    """The layer's name in the model that was converted."""
    _dimensions: int | None = None
    """1, 2 or 3 where it was a BatchNorm1d, 2d or 3d, for the way back."""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        process_group: Any = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        bias: bool = True,
        activation: str | None = None,
        negative_slope: float = 0.01,
        single_value: str = "raise",
    ) -> None:
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
        _group_name(self._speaker(), process_group)
        self.process_group = process_group

    @classmethod
    def convert_sync_batchnorm(cls, module: nn.Module, process_group: Any = None) -> nn.Module:
        """Makes every batch normalization of a model a SyncBatchNorm.

        torch's and steadynorm's BatchNorm1d, 2d, 3d and SyncBatchNorm are converted; each once, also where several
        modules share it. The new layer has the old one's parameters and buffers themselves, so that an optimizer goes
        on with them, its hooks, settings, mode, and whatever else it was given; and its name in the model, for errors.

        Args:
            module: any model; changed in place.
            process_group: the ranks that share statistics; by default all of them, or a SyncBatchNorm's own.

        Returns:
            The module; a new layer if it is a batch normalization itself.

        Raises:
            InvalidArgumentError (a ValueError): a layer whose own forward would be lost, a lazy one that has not seen
                its first input, or a process group that this rank is not in; nothing has changed.
            SynchronizationError (a RuntimeError): process_group given and torch.distributed not initialized; likewise.
        """
        who = f"{cls.__name__}.convert_sync_batchnorm"
        _group_name(who, process_group)
        converted: dict[nn.Module, nn.Module] = {}
        for name, layer in module.named_modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                _check_convertible(who, name, layer)
                converted[layer] = cls._converted(name, layer, process_group)
        for parent in list(module.modules()):
            for name, child in parent._modules.items():
                if child in converted:
                    parent._modules[name] = converted[child]
        return converted.get(module, module)

    @classmethod
    def _converted(cls, name: str, layer: nn.modules.batchnorm._BatchNorm, process_group: Any) -> SyncBatchNorm:
        new = cls(layer.num_features, affine=False, track_running_stats=False)
        new.__dict__.update({k: v for k, v in layer.__dict__.items() if k not in ("_guard", "_collector")})
        new.process_group = getattr(layer, "process_group", None) if process_group is None else process_group
        new._path = name or None
        new._dimensions = dimensions(layer)
        return new

    def _step(
        self, who: object, x: Tensor, apply: Apply, core: ModuleType | None, running: Running
    ) -> tuple[Tensor, Outcome]:
        """Normalizes by the moments of all ranks where there are several and the layer trains."""
        group = _group_name(who, self.process_group) if self.training else None
        if group is None:
            return super()._step(who, x, apply, core, running)
        check_pair(who, running.mean, running.var)
        if x.shape[1] != self.num_features:
            raise ChannelMismatchError(f"{who}: got an input of {x.shape[1]} channels, of shape {tuple(x.shape)}.")
        ranks = sync.Ranks(str(who), group)
        if self.single_value == "running":
            ranks = ranks._replace(mean=running.mean, var=running.var)
        y, batch = sync.batch_norm(x, apply, ranks)
        outcome = settle(who, running, batch)
        if ranks.mean is not None and readable(x) and (batch.count == 1).any():
            outcome = UNTOUCHED
        return y, outcome

    def _speaker(self) -> str:
        return super()._speaker() if self._path is None else f"{super()._speaker()} at {self._path!r}"

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise InvalidInputError(
                f"{self._speaker()}: expected an input (N, C, *), got {input.dim()}-D input of shape "
                f"{tuple(input.shape)}. The first dimension is the batch, the second the channels."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> SyncBatchNorm:
        """A copy that shares the process group, which cannot be copied."""
        new = type(self).__new__(type(self))
        memo[id(self)], memo[id(self.process_group)] = new, self.process_group
        new.__dict__.update(copy.deepcopy(self.__getstate__(), memo))
        return new


def _group_name(who: object, process_group: Any) -> str | None:
    """The name of the process group, all ranks' if None; None if there is only this rank to exchange with."""
    if not (dist.is_available() and dist.is_initialized()):
        if process_group is None:
            return None
        raise SynchronizationError(
            f"{who}: got a process_group, but torch.distributed is not initialized. Call "
            "torch.distributed.init_process_group first, or pass process_group=None."
        )
    group = dist.group.WORLD if process_group is None else process_group
    if not isinstance(group, dist.ProcessGroup):
        raise InvalidArgumentError(
            f"{who}: expected a process group that this rank is in, as torch.distributed.new_group gives it to its "
            f"members, got {process_group!r}."
        )
    return group.group_name if group.size() > 1 else None


def _check_convertible(who: str, name: str, layer: nn.modules.batchnorm._BatchNorm) -> None:
    """Raises InvalidArgumentError for a layer that would not be the same layer afterwards."""
    kind = f"{type(layer).__module__}.{type(layer).__qualname__}"
    if is_uninitialized(layer):
        raise InvalidArgumentError(
            f"{who}: expected layers that know their channels, got {kind} at {name!r}. Run a batch first."
        )
    if not has_known_forward(layer, (_BatchNorm._step, SyncBatchNorm._step)):
        raise InvalidArgumentError(
            f"{who}: expected torch's or steadynorm's batch normalization, got {kind} at {name!r}, whose own forward "
            "would be lost. Replace it by one of them, or convert the parts of the model without it."
        )
