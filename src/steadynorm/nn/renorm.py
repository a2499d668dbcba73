"""BatchRenorm1d, 2d and 3d: normalized by the batch, corrected towards the running statistics."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..errors import InvalidArgumentError
from ..functional import values_per_channel
from ..kernels import Apply, has_memory, readable
from ..kernels.running import Outcome, Running, settle
from ..moments import Moments
from ..ops.renorm import batch_renorm
from ..torch_internals import in_backward, in_graph
from .batchnorm import BatchNorm1d, BatchNorm2d, BatchNorm3d, _BatchNorm

REMEMBERED = 8
"""Forwards whose corrections are kept for activation checkpointing, which asks for them in the backward pass."""


class Ramp(NamedTuple):
    """A number that is `low` up to step `begin`, `high` from step `end` on, and goes linearly in between.

    Unlike a function, it goes into a compiled graph, and is not waited for on accelerators.
    """

    low: float
    high: float
    begin: int
    end: int

    def __call__(self, step: Any) -> Any:
        """Its value at a step: an int, or a 0-d tensor."""
        part = (step - self.begin) / max(self.end - self.begin, 1)
        part = part.clamp(0, 1) if isinstance(part, Tensor) else min(max(part, 0.0), 1.0)
        return self.low + (self.high - self.low) * part


RMAX = Ramp(1.0, 3.0, 5_000, 40_000)
"""The paper's schedule of rmax (sec. 4)."""
DMAX = Ramp(0.0, 5.0, 5_000, 25_000)
"""The paper's schedule of dmax."""
Limit = float | Callable[[int], float]


class _BatchRenorm(_BatchNorm):
    """What the three layers share; they differ in the shapes they take."""

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
        rmax: Limit = RMAX,
        dmax: Limit = DMAX,
        bias: bool = True,
        activation: str | None = None,
        negative_slope: float = 0.01,
        single_value: str = "raise",
    ) -> None:
        name = type(self).__name__
        if not track_running_stats:
            raise InvalidArgumentError(
                f"{name}: expected track_running_stats=True, got {track_running_stats!r}. It corrects the batch's "
                "statistics towards the running ones; without those, use BatchNorm."
            )
        for what, limit, least in (("rmax", rmax, 1), ("dmax", dmax, 0)):
            for value in (limit.low, limit.high) if isinstance(limit, Ramp) else (limit,):
                if not callable(value):
                    _check_limit(name, what, value, least)
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
        self.rmax = rmax
        self.dmax = dmax
        self._recent: deque[tuple[Moments, Tensor, Tensor]] = deque(maxlen=REMEMBERED)
        self._uncorrected = False

    def _step(
        self, who: object, x: Tensor, apply: Apply, core: ModuleType | None, running: Running
    ) -> tuple[Tensor, Outcome]:
        if not self.training:
            return super()._step(who, x, apply, core, running)
        if running.mean is None or running.var is None or self.num_batches_tracked is None:
            raise InvalidArgumentError(
                f"{who}: expected running_mean, running_var and num_batches_tracked in training, got None. It corrects "
                "the batch's statistics towards them; without them, use BatchNorm."
            )
        rmax = _limit(who, "rmax", self.rmax, self.num_batches_tracked, least=1)
        dmax = _limit(who, "dmax", self.dmax, self.num_batches_tracked, least=0)
        again, trivial = _recomputing(), _is(rmax, 1) and _is(dmax, 0)
        if not again:
            self._uncorrected = trivial
        if self._uncorrected or values_per_channel(x, apply.mask) < 2:
            return super()._step(who, x, apply, core, running)
        with torch.no_grad():
            batch = ops.moments(x.detach(), apply.mask)
            corrections = self._remembered(batch) if again else None
            if corrections is None:
                corrections = _corrections(batch, running.mean, running.var, apply.eps, rmax, dmax)
            if not again and not torch.compiler.is_compiling() and has_memory(batch.mean):
                self._recent.append((batch, *corrections))
        y = batch_renorm(x, apply, batch, *corrections)
        return y, settle(who, running, batch)

    def _remembered(self, batch: Moments) -> tuple[Tensor, Tensor] | None:
        """r and d of the forward that this one recomputes: the running statistics have moved since."""
        for known, r, d in reversed(self._recent):
            if torch.equal(known.mean, batch.mean) and torch.equal(known.m2, batch.m2):
                return r, d
        return None

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, rmax={self.rmax}, dmax={self.dmax}"


def _recomputing() -> bool:
    """Whether this forward runs inside a backward pass, as activation checkpointing has it."""
    return not in_graph() and in_backward()


def _check_limit(who: object, name: str, value: Any, least: int) -> None:
    if not isinstance(value, (int, float)) or not value >= least:
        raise InvalidArgumentError(
            f"{who}: expected {name} >= {least}, got {value!r}. It bounds the correction: rmax=1, dmax=0 is plain "
            "batch normalization; the paper goes to 3 and 5."
        )


def _limit(who: object, name: str, limit: Limit, batches: Tensor, least: int) -> Any:
    """The bound at this step: a number, or a tensor where the count of batches cannot be looked at or waited for."""
    if isinstance(limit, Ramp) and not readable(batches):
        return limit(batches)
    value = limit(int(batches)) if callable(limit) else limit
    _check_limit(who, name, value, least)
    return value


def _is(bound: Any, number: int) -> bool:
    return not isinstance(bound, Tensor) and bound == number


def _corrections(batch: Moments, mean: Tensor, var: Tensor, eps: float, rmax: Any, dmax: Any) -> tuple[Tensor, Tensor]:
    """r and d, (C,)."""
    wide = batch.mean.dtype
    sd = (var.to(wide) + eps).sqrt()
    r, d = (batch.var[0] + eps).sqrt() / sd, (batch.mean[0] - mean.to(wide)) / sd
    return r.clip(1 / rmax, rmax), d.clip(-dmax, dmax)


class BatchRenorm1d(_BatchRenorm, BatchNorm1d):
    """Batch renormalization of (N, C) or (N, C, L) inputs; everything else as `BatchRenorm2d`."""


class BatchRenorm2d(_BatchRenorm, BatchNorm2d):
    r"""Batch renormalization of (N, C, H, W) inputs: trains on what inference will see.

    .. math:: \hat{x} = \frac{x - \mu_B}{\sigma_B} r + d, \quad
        r = \text{clip}_{[1/r_{max}, r_{max}]}\Bigl(\frac{\sigma_B}{\sigma}\Bigr), \quad
        d = \text{clip}_{[-d_{max}, d_{max}]}\Bigl(\frac{\mu_B - \mu}{\sigma}\Bigr), \quad
        y = f(\hat{x} \gamma + \beta + \text{residual})

    mu_B and sigma_B² - eps are the batch's mean and variance (divided by n); mu and sigma² - eps are the running ones,
    before the batch moves them. Gradients go through mu_B and sigma_B, not through r and d. Where nothing is clipped,
    xhat is (x - mu) / sigma, what eval mode computes; with rmax 1 and dmax 0 the layer is `BatchNorm2d`, bit for bit.

    The running variance, unbiased, is averaged as in `BatchNorm2d`, where the paper averages sigma_B. Eval mode and
    state dicts are those of `BatchNorm2d`.

    Args:
        num_features: C, the number of channels.
        eps, momentum, affine, device, dtype, bias, activation, negative_slope, single_value: as in `BatchNorm2d`. The
            paper averages slowly, with momentum 0.01.
        track_running_stats: True; the layer is nothing without running statistics.
        rmax: bound of r, at least 1; inf for none. A number, a `Ramp`, or a function of the number of batches so far,
            which waits for an accelerator and does not go into a compiled graph. By default 1 for 5,000 batches, then
            linearly to 3 at 40,000.
        dmax: bound of d, at least 0, in standard deviations; likewise. By default 0 for 5,000 batches, then linearly to
            5 at 25,000.

    Shape:
        input, residual and mask: as in `BatchNorm2d`.

    Raises:
        InvalidArgumentError (a ValueError): rmax below 1, dmax below 0, no running statistics; the rest as
            `BatchNorm2d`.

    A forward that activation checkpointing repeats uses the r and d of the forward that it repeats, for the last eight
    forwards of a layer.

    Example::

        layer = sn.BatchRenorm2d(16, momentum=0.01)
        early = sn.BatchRenorm2d(16, rmax=sn.nn.Ramp(1, 3, 100, 1_000), dmax=lambda step: min(step / 200, 5))

    Reference: Ioffe 2017, arXiv:1702.03275, Alg. 1 and sec. 4.
    """


class BatchRenorm3d(_BatchRenorm, BatchNorm3d):
    """Batch renormalization of (N, C, D, H, W) inputs; everything else as `BatchRenorm2d`."""
