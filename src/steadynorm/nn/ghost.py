"""GhostBatchNorm1d, 2d and 3d: small groups of examples normalized by their own statistics."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..errors import InvalidArgumentError, InvalidInputError
from ..functional import evaluate
from ..inputs import check_pair
from ..kernels import Apply, readable
from ..kernels.running import UNTOUCHED, Outcome, Running, settle
from ..moments import Moments
from .batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, _BatchNorm


class _GhostBatchNorm(_BatchNorm):
    """What the three layers share; they differ in the shapes they take."""

    def __init__(
        self,
        num_features: int,
        virtual_batch_size: int,
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
        _check_size(type(self).__name__, virtual_batch_size)
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
        self.virtual_batch_size = virtual_batch_size

    def _step(
        self, who: object, x: Tensor, apply: Apply, core: ModuleType | None, running: Running
    ) -> tuple[Tensor, Outcome]:
        size = self.virtual_batch_size
        _check_size(who, size)
        examples, whole = x.shape[0], _in_full_ghosts(x.shape, size)
        if not self.training or x.numel() == 0 or whole == 0 or whole == examples == size:
            return super()._step(who, x, apply, core, running)
        check_pair(who, running.mean, running.var)
        found = [self._normalize(who, part, running) for part in _parts(x, apply, whole, size)]
        y, batches = _joined([y for y, _ in found]), [batch for _, batch in found if batch is not None]
        if len(batches) < len(found):
            return y, UNTOUCHED
        return y, settle(who, running, _stacked(batches))

    def _normalize(self, who: object, part: _Part, running: Running) -> tuple[Tensor, Moments | None]:
        """Each ghost by its own statistics; those of one value a channel, if allowed, by the running ones.

        Moments are None where all ghosts have one value, and so none is the batch's own.
        """
        x, apply, ghosts = part
        alone = _of_one_value(part)
        if alone is None:
            return ops.batch_norm(x, apply, ghosts)
        if self.single_value == "raise" or running.mean is None:
            raise InvalidInputError(
                f"{who}: expected more than 1 value per channel in each ghost batch when training, got ghosts of "
                f"{x.shape[0] // ghosts} of the {x.shape[0]} examples of shape {tuple(x.shape[1:])}, and one or more "
                f"with {'a single' if apply.mask is None else 'a single real'} value. Use a larger virtual_batch_size, "
                'or single_value="running".'
            )
        real = torch.ones_like(alone) if apply.mask is None else apply.mask
        y, batch = ops.batch_norm(x, apply._replace(mask=real & ~alone), ghosts)
        y = y + evaluate(who, x, apply._replace(mask=real & alone), running)
        return y, None if apply.mask is None else batch

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, virtual_batch_size={self.virtual_batch_size}"


class _Part(NamedTuple):
    """So many ghosts of one size: their examples, and what is applied to them."""

    x: Tensor
    apply: Apply
    ghosts: int


def _check_size(who: object, size: Any) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size <= 0:
        raise InvalidArgumentError(
            f"{who}: expected virtual_batch_size to be an int > 0, got {size!r}. It is the number of examples that "
            "share statistics, such as 32."
        )


def _in_full_ghosts(shape: torch.Size, size: int) -> int:
    """How many examples are in ghosts of the full size. The rest is one ghost, which has more than one value."""
    rest = shape[0] % size
    alone = rest * math.prod(shape[2:]) == 1
    return shape[0] - rest - (size if alone and shape[0] > rest else 0)


def _parts(x: Tensor, apply: Apply, whole: int, size: int) -> list[_Part]:
    """The ghosts of the full size; and the last one, if it is of another."""
    if whole == x.shape[0]:
        return [_Part(x, apply, whole // size)]
    sizes = [whole, x.shape[0] - whole]
    pieces = (_split(t, sizes) for t in (x, apply.residual, apply.mask))
    return [
        _Part(x, apply._replace(residual=residual, mask=mask), ghosts)
        for x, residual, mask, ghosts in zip(*pieces, (whole // size, 1), strict=True)
    ]


def _of_one_value(part: _Part) -> Tensor | None:
    """Which examples, bool (N, 1, *), are in ghosts of one value a channel.

    None for none, and where a mask on an accelerator would have to be waited for.
    """
    x, apply, ghosts = part
    if apply.mask is None:
        values = x.numel() // x.shape[1] // ghosts
        return torch.ones_like(x[:, :1], dtype=torch.bool) if values == 1 else None
    if not readable(apply.mask):
        return None
    alone = apply.mask.reshape(ghosts, -1).sum(1) == 1
    if not alone.any():
        return None
    of_examples = alone.repeat_interleave(x.shape[0] // ghosts)
    return of_examples.reshape(-1, *[1] * (x.dim() - 1)).expand_as(apply.mask)


def _stacked(parts: list[Moments]) -> Moments:
    """Moments of all ghosts, (ghosts, C)."""
    if len(parts) == 1:
        return parts[0]
    return Moments(*(torch.cat([getattr(part, name) for part in parts]) for name in ("count", "mean", "m2")))


def _split(x: Tensor | None, sizes: list[int]) -> list[Any]:
    """Parts one after the other, whose gradient comes back in the memory order of x."""
    if x is None:
        return [None] * len(sizes)
    if _keeps_order(x):
        return list(x.split(sizes))
    return [part.movedim(-1, 1) for part in x.movedim(1, -1).split(sizes)]


def _joined(parts: list[Tensor]) -> Tensor:
    """The parts one after the other, in their memory order."""
    if len(parts) == 1:
        return parts[0]
    if _keeps_order(parts[0]):
        return torch.cat(parts)
    return torch.cat([part.movedim(1, -1) for part in parts]).movedim(-1, 1)


def _keeps_order(x: Tensor) -> bool:
    """Whether `torch.cat` keeps its memory order, as it does channels last of images and volumes."""
    return x.is_contiguous() or x.dim() > 3


class GhostBatchNorm1d(_GhostBatchNorm, BatchNorm1d):
    """Ghost batch normalization of (N, C) or (N, C, L) inputs; everything else as `GhostBatchNorm2d`."""


class GhostBatchNorm2d(_GhostBatchNorm, BatchNorm2d):
    r"""Batch normalization of (N, C, H, W) inputs in which every `virtual_batch_size` examples have own statistics.

    .. math:: y = f\Bigl(\frac{x - \mu_g}{\sqrt{\sigma_g^2 + \epsilon}} \gamma + \beta + \text{residual}\Bigr)

    In train mode the batch is cut, in its order, into ghosts g of `virtual_batch_size` examples, and mu_g and sigma_g²
    are the mean and variance of a ghost. What is left at the end is a smaller ghost; where that had one value a channel
    it joins the ghost before it. A batch of fewer examples than `virtual_batch_size` is one ghost, as in `BatchNorm2d`.
    All ghosts are normalized at once, not one after the other.

    The running statistics move once a batch, towards the mean and variance of all its values, which is what the ghosts'
    moments merge to: ghosts of any size leave the same running statistics. Eval mode is that of `BatchNorm2d`, and so
    are state dicts.

    Args:
        num_features: C, the number of channels.
        virtual_batch_size: examples that share statistics, at least 1.
        eps, momentum, affine, track_running_stats, device, dtype, bias, activation, negative_slope: as in
            `BatchNorm2d`. Without running statistics eval mode normalizes by the whole batch.
        single_value: what to do in train mode with ghosts of one value a channel, such as examples (N, C) with
            ``virtual_batch_size=1`` or masks that leave one: "raise", or "running", to normalize those by the running
            statistics and leave them.

    Shape:
        input, residual and mask: as in `BatchNorm2d`; N need not be a multiple of `virtual_batch_size`.

    Raises:
        InvalidArgumentError (a ValueError): virtual_batch_size below 1 or no int; the rest as `BatchNorm2d`.
        InvalidInputError (a ValueError): a ghost of one value a channel; the rest as `BatchNorm2d`.

    Example::

        block = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), sn.GhostBatchNorm2d(16, 32, activation="relu"))
        y = block(torch.randn(256, 3, 32, 32))  # eight ghosts of 32 images

    Reference: Hoffer, Hubara & Soudry 2017, arXiv:1705.08741, Alg. 1.
    """


class GhostBatchNorm3d(_GhostBatchNorm, BatchNorm3d):
    """Ghost batch normalization of (N, C, D, H, W) inputs; everything else as `GhostBatchNorm2d`."""
