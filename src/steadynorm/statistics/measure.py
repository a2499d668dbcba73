"""Measuring the population at every layer of a model, all layers at once or one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import InvalidArgumentError, ModelError
from .convergence import Convergence
from .feed import check_data, feed
from .meter import Meter
from .population import ESTIMATORS, Population
from .ranks import Ranks
from .shifts import Shift, Shifts
from .sites import Site, evaluating, sites


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
    if wanted.batches is not None and wanted.batches < 1:
        raise InvalidArgumentError(f"{who}: expected batches >= 1, or None for all, got {wanted.batches}.")
    if wanted.estimator not in ESTIMATORS:
        choices = " or ".join(map(repr, ESTIMATORS))
        raise InvalidArgumentError(f"{who}: expected estimator {choices}, got {wanted.estimator!r}.")
    if wanted.tolerance is not None and not 0 < wanted.tolerance < float("inf"):
        raise InvalidArgumentError(
            f"{who}: expected a tolerance > 0 in standard deviations, such as 0.01, got {wanted.tolerance}."
        )
    if wanted.unreached not in ("raise", "keep"):
        raise InvalidArgumentError(f"{who}: expected unreached 'raise' or 'keep', got {wanted.unreached!r}.")
    return sites(who, model)


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
        meter = Meter(self.sites)
        with meter.attached():
            self.ranks.all_do(lambda: self._first_pass(meter, convergence), self.device)
            merged = self._judged(self.sites, meter.by_layer())
            reached = [site for site in self.sites if merged[site.name].batches > 0]
            if self.wanted.sequential:
                merged = self._one_by_one(meter)
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

    def _one_by_one(self, meter: Meter) -> dict[str, Population]:
        """Call by call in the order of execution, each measured behind layers that have their final statistics."""
        by_name = {site.name: site for site in self.sites}
        calls = dict.fromkeys(call for order in self.ranks.all_have(list(meter.found)) for call in order)
        merged: dict[str, Population] = {}
        for call in calls:
            site = by_name[call[0]]
            meter.want(call)
            self.ranks.all_do(lambda: self._pass(meter), self.device)
            found = self._judged([site], meter.by_layer())[site.name]
            merged[site.name] = Population.merge([merged[site.name], found]) if site.name in merged else found
            meter.settle(call, self._values(site, merged[site.name]))
        return merged

    def _pass(self, meter: Meter) -> None:
        for batch in islice(self.wanted.data, self.read):
            meter.forward(self._forward, batch)

    def _forward(self, batch: Any) -> None:
        if self.wanted.call is not None:
            self.wanted.call(self.model, batch)
        else:
            feed(self.wanted.who, self.model, batch, self.device)

    def _values(self, site: Site, population: Population) -> tuple[Tensor, Tensor]:
        return site.mixed(*population.estimate(self.wanted.estimator), self.wanted.weight)

    def _judged(self, wanted: list[Site], found: dict[str, Population]) -> dict[str, Population]:
        """The populations over all ranks, if all are ones that a layer can have; the same on every rank."""
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
        for site in wanted:
            if merged[site.name].batches > 0:
                _check(who, site, merged[site.name], self.wanted.estimator)
        return merged


def _check(who: str, site: Site, population: Population, estimator: str) -> None:
    """Raises ModelError for a population without a variance, or one that the layer's dtype cannot hold."""
    degrees = population.pooled.count - 1 if estimator == "pooled" else population.degrees
    if (degrees < 1).any():
        where = "" if estimator == "pooled" else " in a batch"
        raise ModelError(f"{who}: expected at least two values a channel{where} at {site.place}. Pass more data.")
    if not all(value.to(site.mean.dtype).isfinite().all() for value in population.estimate(estimator)):
        raise ModelError(
            f"{who}: expected finite data, got a mean or variance at {site.place} that is inf or nan in "
            f"{site.mean.dtype}. Look for such values in the data and in the weights."
        )


def _shift(site: Site, mean: Tensor, spread: Tensor, count: Tensor, change: float | None) -> Shift:
    old_var, var = (s if s.dim() == 1 else s.diagonal(dim1=1, dim2=2).flatten() for s in (site.old_spread, spread))
    shift = (mean - site.old_mean) / (old_var + site.layer.eps).sqrt()
    return Shift(site.old_mean, old_var, mean, var, count, shift, change)
