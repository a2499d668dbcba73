"""The layers of a model that keep running statistics, and how these are kept and put back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import ModelError
from ..moments import Moments, statistics_dtype
from ..nn import WhiteningBatchNorm
from ..nn.renorm import _BatchRenorm
from ..walk import batch_norms
from .population import Comoments, Population, variances


@dataclass(frozen=True)
class Site:
    """A layer that keeps running statistics.

    Attributes:
        name: of the layer in the model.
        layer: of torch's or ours.
        mean: its running mean, (C,).
        spread: its running variance (C,), or covariance (G, d, d).
        old_mean: what that was, in float64.
        old_spread: likewise.
    """

    name: str
    layer: nn.modules.batchnorm._BatchNorm
    mean: Tensor
    spread: Tensor
    old_mean: Tensor
    old_spread: Tensor

    @property
    def place(self) -> str:
        """Where the layer is, for messages."""
        return repr(self.name) if self.name else "the model itself"

    def go_by(self, *choices: Moments) -> None:
        """Has the layer, in eval mode, normalize by the first that has enough values, or by its old statistics."""
        mean, spread = self.old_mean, self.old_spread
        for moments in reversed(choices):
            wide = moments.m2 / moments.count[:1].clamp(min=1) if isinstance(moments, Comoments) else moments.var
            enough = moments.count > (self.spread.shape[-1] if isinstance(moments, Comoments) else 1)
            mean = torch.where(enough, moments.mean, mean)
            spread = torch.where(enough if wide.dim() == 1 else enough[0], wide, spread)
        self.write(mean, spread)

    def write(self, mean: Tensor, spread: Tensor) -> None:
        self.mean.copy_(mean)
        self.spread.copy_(spread)

    def moved(self, before: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor]) -> float:
        """How far statistics went in standard deviations, at most over channels and pairs of them, beyond rounding."""
        eps = torch.finfo(self.mean.dtype).eps
        var = (variances(now[1]) + self.layer.eps).clamp(min=torch.finfo(now[1].dtype).tiny)
        sd = var.sqrt().reshape(*now[1].shape[:2], *[1] * (now[1].dim() - 2))
        scale = var if now[1].dim() == 1 else sd * sd.mT
        mean = (now[0] - before[0]).abs() - 4 * eps * now[0].abs()
        spread = (now[1] - before[1]).abs() / scale - 4 * eps
        return max(float((mean.reshape(sd.shape) / sd).max()), float(spread.max()), 0.0)

    def unit(self) -> tuple[Tensor, Tensor]:
        """Mean 0 and variance 1."""
        flat = self.old_spread.dim() == 1
        spread = torch.ones_like(self.old_spread) if flat else torch.eye(self.spread.shape[-1]).to(self.old_spread)
        return torch.zeros_like(self.old_mean), spread.expand_as(self.old_spread)

    def mixed(self, mean: Tensor, spread: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        """New statistics with that weight beside the old ones, which do not matter where it is 1."""
        if weight == 1:
            return mean, spread
        return torch.lerp(self.old_mean, mean, weight), torch.lerp(self.old_spread, spread, weight)

    def count(self, batches: int) -> None:
        """Says that the statistics are those of so many batches. Batch renormalization counts steps of its schedule."""
        if self.layer.num_batches_tracked is not None and not isinstance(self.layer, _BatchRenorm):
            self.layer.num_batches_tracked.fill_(batches)

    def nothing(self) -> Population:
        """The population of no data."""
        none, flat = torch.zeros_like(self.old_mean), torch.zeros_like(self.old_spread)
        return Population((Moments if flat.dim() == 1 else Comoments)(none, none, flat), flat, none, 0)


def sites(who: str, model: nn.Module) -> list[Site]:
    """Every layer with running statistics, in the model's order.

    Raises:
        InvalidArgumentError (a ValueError): no batch normalization layer.
        ModelError (a ValueError): none keeps running statistics, or a lazy module has not seen its first input.
    """
    layers = batch_norms(who, model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ModelError(
                f"{who}: expected a model that knows its shapes, got {name!r} not initialized. Run a batch."
            )
    found = [site for name, layer in layers.items() if (site := _site(name, layer)) is not None]
    if not found:
        raise ModelError(
            f"{who}: expected layers that keep running statistics, got {', '.join(map(repr, layers))} without. Build "
            "them with track_running_stats=True."
        )
    return found


def _site(name: str, layer: nn.modules.batchnorm._BatchNorm) -> Site | None:
    spread = layer.running_covariance if isinstance(layer, WhiteningBatchNorm) else layer.running_var
    mean = layer.running_mean
    if mean is None or spread is None or mean.numel() == 0:
        return None
    wide = statistics_dtype(mean.device)
    return Site(name, layer, mean, spread, mean.to(wide, copy=True), spread.to(wide, copy=True))


@contextmanager
def evaluating(model: nn.Module, found: list[Site]) -> Iterator[None]:
    """In the context every module is in eval mode, compiled ones run as they are written, and no gradient is kept.

    Afterwards modes are as before; after an exception the layers' running statistics too, bit by bit.
    """
    modes = [(module, module.training) for module in model.modules()]
    tensors = [t for site in found for t in (site.mean, site.spread, site.layer.num_batches_tracked) if t is not None]
    kept = [(tensor, tensor.clone()) for tensor in tensors]
    try:
        for module, _ in modes:
            module.training = False  # not eval(), which a module may have made to do more
        with torch.no_grad(), as_written():
            yield
    except BaseException:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)
        raise
    finally:
        for module, training in modes:
            module.training = training


def as_written() -> AbstractContextManager[Any]:
    """In the context compiled modules run without their compiled code, which would not see hooks."""
    if "torch._dynamo" not in sys.modules:
        return nullcontext()  # nothing is compiled, and importing the compiler takes seconds
    return torch.compiler.set_stance("force_eager")
