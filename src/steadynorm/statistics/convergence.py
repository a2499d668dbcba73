"""Whether more data still changes statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .population import Population, variances
from .sites import Site

LEAST = 4
"""Batches below which nothing is called converged."""


class Convergence:
    """Compares statistics with those of half the batches, each time their number has doubled.

    From one batch to the next, the average of k batches changes by a k-th of their scatter however far it is from its
    limit. When the data double, what it goes is about what it has left to go.

    Attributes:
        met: whether the largest change was below the tolerance when last looked at.
        changes: by layer, how far the statistics went then, in standard deviations; inf where nothing was compared.
    """

    def __init__(self, sites: Sequence[Site], tolerance: float) -> None:
        self._sites = {site.name: site for site in sites}
        self._tolerance = tolerance
        self._before: dict[str, tuple[Tensor, Tensor]] = {}
        self.changes = dict.fromkeys(self._sites, float("inf"))
        self.met = False

    def is_met(self, batches: int, found: Callable[[], dict[str, Population]]) -> bool:
        """Whether to stop after so many batches."""
        if batches & (batches - 1):
            return False
        now = {name: self._statistics(name, population) for name, population in found().items()}
        for name, (mean, sd) in now.items():
            if name in self._before:
                old_mean, old_sd = self._before[name]
                self.changes[name] = max(
                    float(((mean - old_mean) / sd).abs().max()), float((sd / old_sd).log().abs().max())
                )
        self._before = now
        self.met = batches >= LEAST and bool(now) and all(self.changes[name] < self._tolerance for name in now)
        return self.met

    def _statistics(self, name: str, population: Population) -> tuple[Tensor, Tensor]:
        mean, spread = population.estimate("pooled")
        return mean, (variances(spread) + self._sites[name].layer.eps).sqrt()
