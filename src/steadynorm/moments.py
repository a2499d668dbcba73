"""Moments: how many values, their mean, and their squared distance from it; per channel, exactly mergeable."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


def statistics_dtype(device: torch.device) -> torch.dtype:
    """The dtype statistics are carried in: float64, or float32 on a device that has no float64 (mps)."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Moments:
    r"""First and second moments of the values that share statistics.

    .. math:: m_2 = \sum_i (x_i - \text{mean})^2

    Moments of parts merge exactly, so batches, ranks, clients and whole data sets are one operation on different
    parts. All three tensors are float64 (float32 on mps), whatever the dtype of the data.

    Attributes:
        count: number of values, shape (C,) or (G, C); may be 0, in which case mean and m2 are 0.
        mean: arithmetic mean, same shape, in the data's unit.
        m2: sum of squared deviations from the mean, same shape, in the data's unit squared; never negative.

    Reference: Chan, Golub & LeVeque 1983, "Algorithms for Computing the Sample Variance".
    """

    count: Tensor
    mean: Tensor
    m2: Tensor

    @classmethod
    def from_data(cls, x: Tensor, *, mask: Tensor | None = None) -> Moments:
        """Moments of each channel of `x`.

        Args:
            x: floating-point data, shape (N, C, *).
            mask: bool, True where an element is real, broadcastable to `x` and of size 1 in the channel dimension.

        Returns:
            Moments of shape (C,).
        """
        return measure(x, dims=[d for d in range(x.dim()) if d != 1], mask=mask)

    @staticmethod
    def merge(parts: Iterable[Moments]) -> Moments:
        r"""Moments of the union of `parts`, in any number and order; empty parts (count 0) do not matter.

        .. math:: m_2 = \sum_k m_{2,k} + \sum_k n_k (\text{mean}_k - \text{mean})^2

        Raises:
            ValueError: there is no part.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("Moments.merge: expected at least one part, got none.")
        count = torch.stack([part.count for part in parts])
        mean = torch.stack([part.mean for part in parts])
        return Moments(count, mean, torch.stack([part.m2 for part in parts])).union()

    def union(self, keepdim: bool = False) -> Moments:
        """`merge` of parts that are stacked: (K, *) → (*), or (1, *)."""
        if keepdim and self.count.shape[0] == 1:
            return self
        count = self.count.sum(0, keepdim)
        share = self.count / count.clamp(min=1)
        mean = (share * self.mean).sum(0, keepdim)
        m2 = self.m2.sum(0, keepdim) + (self.count * (self.mean - mean).square()).sum(0, keepdim)
        return Moments(count, mean, m2)

    @property
    def var(self) -> Tensor:
        """Variance divided by n (the one that normalizes); 0 where there is no value."""
        return self.m2 / self.count.clamp(min=1)

    @property
    def var_unbiased(self) -> Tensor:
        """Variance divided by n - 1 (the one that running statistics average); nan where there are fewer than two."""
        spread = self.m2 / (self.count - 1).clamp(min=1)
        return torch.where(self.count > 1, spread, torch.nan)


def measure(x: Tensor, dims: list[int], mask: Tensor | None = None) -> Moments:
    r"""Moments of `x` over `dims`, by the corrected two-pass algorithm.

    .. math::
        d_i = x_i - s, \quad \text{mean} = s + \frac{1}{n}\sum d_i, \quad
        m_2 = \sum d_i^2 - \frac{1}{n}\Bigl(\sum d_i\Bigr)^2

    The shift s is the mean as the working dtype can hold it, so the subtracted term is a rounding error squared and
    nothing cancels, also for a mean far larger than the spread. Differentiable to any order: s is a constant for it.

    Args:
        x: floating-point data; 16-bit data is measured in float32.
        dims: dimensions whose elements share statistics.
        mask: bool, True where an element is real, broadcastable to `x`.

    Returns:
        Moments with the remaining dimensions.

    Reference: Chan, Golub & LeVeque 1983, eq. 1.7.
    """
    wide = statistics_dtype(x.device)
    data = x if x.dtype == torch.float64 else x.float()
    if mask is None:
        size = 1
        for dim in dims:
            size = size * x.shape[dim]
        shift = _finite(data.detach().sum(dims, keepdim=True) / max(size, 1))
        centred = data - shift
        count = torch.full_like(shift.squeeze(dims), size, dtype=wide)
    else:
        mask = mask[(None,) * (x.dim() - mask.dim())]
        mask = mask.expand([x.shape[dim] if dim in dims else size for dim, size in enumerate(mask.shape)])
        sizes = mask.sum(dims, keepdim=True)
        shift = _finite(torch.where(mask, data.detach(), 0).sum(dims, keepdim=True) / sizes.clamp(min=1))
        centred = torch.where(mask, data - shift, 0)
        count = sizes.to(wide).expand_as(shift).squeeze(dims).contiguous()
    residue = centred.sum(dims).to(wide)
    squares = centred.square().sum(dims).to(wide)
    number = count.clamp(min=1)
    mean = shift.squeeze(dims).to(wide) + residue / number
    m2 = (squares - residue * residue / number).clamp(min=0)
    return Moments(count, mean, m2)


def average(weights: Tensor, values: Tensor) -> Tensor:
    r"""Weighted mean of stacked values, :math:`\sum_k w_k v_k / \sum_k w_k`.

    Values of weight 0 do not count, also if they are nan. Values that are all equal have exactly that mean.

    Args:
        weights: finite and at least 0, one or more of them above 0, shape (K, *) broadcastable to that of `values`.
        values: (K, *), of the weights' dtype.

    Returns:
        The mean, (*).
    """
    present = weights > 0
    parts = weights / weights.amax(0)  # first, as the sum of large weights may overflow
    mean = torch.where(present, parts / parts.sum(0) * values, 0).sum(0)
    least, largest = (torch.where(present, values, bound) for bound in (torch.inf, -torch.inf))
    return mean.clamp(least.amin(0), largest.amax(0))


def pool(weights: Tensor, means: Tensor, variances: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of a population, from those of its parts, by the law of total variance.

    .. math:: \mu = \sum_k w_k \mu_k, \quad \sigma^2 = \sum_k w_k \bigl(\sigma_k^2 + (\mu_k - \mu)^2\bigr)

    Args:
        weights: of the parts, as in `average`; divided by their sum here.
        means, variances: (K, *).

    Returns:
        Mean and variance, each (*).
    """
    mean = average(weights, means)
    return mean, average(weights, variances + (means - mean).square())


def _finite(shift: Tensor) -> Tensor:
    """0 for an infinite shift, so that the mean of data with an inf in it is inf."""
    return torch.where(torch.isfinite(shift), shift, 0)
