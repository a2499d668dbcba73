"""Measuring the population at every layer of a model, all layers at once or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from operator import index
from typing import Any, NamedTuple, SupportsIndex

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import InvalidArgumentError, ModelError
from .convergence import Convergence
from .feed import check_data, feed
from .meter import Meter
from .population import ESTIMATORS, Population, variances
from .ranks import Ranks
from .shifts import Shift, Shifts
from .sites import Site, evaluating, sites
from .weigh import is_weighed

MOST = 100
"""Times that each layer is measured at most, until none moves."""
STILL, STILL_32 = 1e-10, 1e-5
"""Standard deviations, beyond rounding, that count as no movement: of float64 layers, and of others."""


class Wanted(NamedTuple):
    """What a user asked for; see `recalibrate_`. `weight`: of the data's statistics beside the old ones, in (0, 1]."""

    who: str
    data: Iterable[Any]
    call: Callable[[nn.Module, Any], object] | None
    batches: int | None
    estimator: str
    sequential: bool
    tolerance: float | None
    unreached: str
    process_group: dist.ProcessGroup | None
    weight: float = 1.0


def settle_(model: nn.Module, wanted: Wanted) -> Shifts:
    """Gives every layer the statistics of the population that reaches it; on any error the model is as before."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module  # whose forward exchanges buffers, batch by batch
    ranks = Ranks(wanted.who, wanted.process_group)
    device = _device(model)
    found = ranks.all_do(lambda: _checked(model, wanted), device)
    ranks.check_same(found, (wanted.estimator, wanted.sequential, wanted.unreached, wanted.weight))
    with evaluating(model, found):
        return _Session(model, found, wanted, ranks, device).run()


def _device(model: Any) -> torch.device:
    tensors = (*model.parameters(), *model.buffers()) if isinstance(model, nn.Module) else ()
    return tensors[0].device if tensors else torch.device("cpu")


def _checked(model: nn.Module, wanted: Wanted) -> list[Site]:
    who = wanted.who
    check_data(who, wanted.data, again=wanted.sequential)
    if wanted.batches is not None and not (isinstance(wanted.batches, SupportsIndex) and index(wanted.batches) >= 1):
        raise InvalidArgumentError(f"{who}: expected batches >= 1, or None for all, got {wanted.batches!r}.")
    if wanted.estimator not in ESTIMATORS:
        choices = " or ".join(map(repr, ESTIMATORS))
        raise InvalidArgumentError(f"{who}: expected estimator {choices}, got {wanted.estimator!r}.")
    if wanted.tolerance is not None and not 0 < wanted.tolerance < float("inf"):
        raise InvalidArgumentError(
            f"{who}: expected a tolerance > 0 in standard deviations, such as 0.01, got {wanted.tolerance}."
        )
    if wanted.unreached not in ("raise", "keep"):
        raise InvalidArgumentError(f"{who}: expected unreached 'raise' or 'keep', got {wanted.unreached!r}.")
    found = sites(who, model)
    if weighed := [site.place for site in found if is_weighed(site.layer)]:
        raise InvalidArgumentError(
            f"{who}: expected layers that see their inputs as they are, got weigh_examples around {weighed[0]}. Leave "
            "that context first."
        )
    return found


class _Session:
    """One run over a model that is in eval mode."""

    def __init__(self, model: nn.Module, found: list[Site], wanted: Wanted, ranks: Ranks, device: torch.device) -> None:
        self.model = model
        self.sites = found
        self.wanted = wanted
        self.ranks = ranks
        self.device = device
        self.read = 0

    def run(self) -> Shifts:
        convergence = None if self.wanted.tolerance is None else Convergence(self.sites, self.wanted.tolerance)
        meter = Meter(self.wanted.who, self.sites)
        with meter.attached():
            self.ranks.all_do(lambda: self._first_pass(meter, convergence), self.device)
            merged = self._reached(self.sites, meter.by_layer())
            reached = [site for site in self.sites if merged[site.name].batches > 0]
            if self.wanted.sequential:
                merged = self._in_order(meter, reached, merged)
            else:
                self._check(reached, merged)
        shifts = {}
        for site in reached:
            population = merged[site.name]
            mean, spread = self._values(site, population)
            site.write(mean, spread)
            site.count(population.batches)
            change = None if convergence is None else convergence.changes[site.name]
            shifts[site.name] = _shift(site, mean, spread, population.pooled.count, change)
        return Shifts(shifts, self.read, None if convergence is None else convergence.met)

    def _first_pass(self, meter: Meter, convergence: Convergence | None) -> None:
        """Every layer at once, each normalizing by its batch, as in training."""
        for batch in islice(self.wanted.data, self.wanted.batches):
            meter.forward(self._forward, batch)
            self.read += 1
            if convergence is not None and convergence.is_met(self.read, meter.by_layer):
                break

    def _in_order(self, meter: Meter, reached: list[Site], merged: dict[str, Population]) -> dict[str, Population]:
        """Layer after layer, each over all its calls, with all others at their own statistics of the whole population.

        That settles layers that are called once a forward. Where a layer is behind one that moves later, as one that is
        called several times may be behind itself, it is measured again, until nothing moves.
        """
        by_name = {site.name: site for site in reached}
        values = {name: self._start(site, merged[name]) for name, site in by_name.items()}
        behind = _union(self.ranks.all_have([(name, sorted(others)) for name, others in meter.behind.items()]))
        order = sorted(behind, key=lambda name: len(behind[name]))
        stale, moved, found = set(order), dict.fromkeys(order, 0.0), {}
        for _ in range(MOST):
            for name in [name for name in order if name in stale]:
                site, before = by_name[name], values[name]
                found[name] = self._again(meter, site)
                values[name] = self._values(site, found[name])
                site.write(*values[name])
                stale.discard(name)
                moved[name] = site.moved(before, values[name])
                if not moved[name] <= (STILL if site.mean.dtype == torch.float64 else STILL_32):
                    stale.update(other for other in order if name in behind[other])
            if not stale:
                return found
        last = max(stale, key=lambda name: moved[name])
        raise ModelError(
            f"{self.wanted.who}: expected statistics that settle, got {by_name[last].place}, which still moved by "
            f"{moved[last]:.2g} standard deviations the {MOST}th time. It is called again behind itself, or the data "
            "are not the same in each pass; sequential=False needs neither."
        )

    def _start(self, site: Site, population: Population) -> tuple[Tensor, Tensor]:
        """The first pass's statistics, written into the layer; mean 0 and variance 1 where those are not finite."""
        values = self._values(site, population)
        values = values if _fits(site, values) else site.unit()
        site.write(*values)
        return values

    def _again(self, meter: Meter, site: Site) -> Population:
        meter.want(site.name)
        self.ranks.all_do(lambda: self._pass(meter), self.device)
        merged = self._reached([site], meter.by_layer())
        self._check([site], merged)
        return merged[site.name]

    def _pass(self, meter: Meter) -> None:
        read = 0
        for batch in islice(self.wanted.data, self.read):
            meter.forward(self._forward, batch)
            read += 1
        if read < self.read:
            raise InvalidArgumentError(
                f"{self.wanted.who}: expected the same batches in each pass with sequential=True, got {self.read} in "
                f"the first and {read} in a later one. Pass data that can be read again, such as a DataLoader."
            )

    def _forward(self, batch: Any) -> None:
        if self.wanted.call is not None:
            self.wanted.call(self.model, batch)
        else:
            feed(self.wanted.who, self.model, batch, self.device)

    def _values(self, site: Site, population: Population) -> tuple[Tensor, Tensor]:
        return site.mixed(*population.estimate(self.wanted.estimator), self.wanted.weight)

    def _reached(self, wanted: list[Site], found: dict[str, Population]) -> dict[str, Population]:
        """The populations over all ranks, if they have reached the layers; the same on every rank."""
        who, merged = self.wanted.who, self.ranks.merge(wanted, found)
        missing = [site for site in wanted if merged[site.name].batches == 0]
        if len(missing) == len(self.sites) and not any(map(sum, self.ranks.all_have([self.read]))):
            raise InvalidArgumentError(f"{who}: expected data with at least one batch, got none.")
        if missing and (self.wanted.unreached == "raise" or len(missing) == len(wanted)):
            places = ", ".join(site.place for site in missing)
            raise ModelError(
                f"{who}: the data never reached {places}. Leave out of the model what eval mode does not use, pass "
                'call= for what a batch is to do, or unreached="keep" to leave those as they are.'
            )
        return merged

    def _check(self, wanted: list[Site], merged: dict[str, Population]) -> None:
        """Raises ModelError for populations without a variance, and statistics that a layer's dtype cannot hold."""
        who, estimator = self.wanted.who, self.wanted.estimator
        for site in wanted:
            population = merged[site.name]
            degrees = population.pooled.count - 1 if estimator == "pooled" else population.degrees
            if (degrees < 1).any():
                where = "" if estimator == "pooled" else " in a batch"
                raise ModelError(
                    f"{who}: expected at least two values a channel{where} at {site.place}. Pass more data."
                )
            if not _fits(site, population.estimate(estimator)):
                raise ModelError(
                    f"{who}: expected finite data, got a mean or variance at {site.place} that is inf or nan in "
                    f"{site.mean.dtype}. Look for such values in the data and in the weights."
                )
            if not _fits(site, self._values(site, population)):
                raise ModelError(
                    f"{who}: the old statistics of {site.place} are not finite, and nor is their mix with others. Use "
                    "weight=1, which forgets them."
                )


def _fits(site: Site, values: tuple[Tensor, Tensor]) -> bool:
    return all(bool(value.to(site.mean.dtype).isfinite().all()) for value in values)


def _union(of_ranks: list[list]) -> dict[str, set[str]]:
    """What is behind what on any rank."""
    behind: dict[str, set[str]] = {}
    for own in of_ranks:
        for name, others in own:
            behind.setdefault(name, set()).update(others)
    return behind


def _shift(site: Site, mean: Tensor, spread: Tensor, count: Tensor, change: float | None) -> Shift:
    old_var, var = variances(site.old_spread), variances(spread)
    shift = (mean - site.old_mean) / (old_var + site.layer.eps).sqrt()
    return Shift(site.old_mean, old_var, mean, var, count, shift, change)
