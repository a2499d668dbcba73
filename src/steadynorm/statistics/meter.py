"""What reaches the layers of a model, measured as it goes in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .population import Population, measured
from .sites import Site


class _Reached(BaseException):
    """Ends a forward that has shown what was wanted; no `except Exception` in a model stops it."""


Call = tuple[str, int]
"""A layer's name, and how often it was called before in the same forward."""


class Meter:
    """Measures what reaches layers, each of which then normalizes by its batch, or by what it is settled at."""

    def __init__(self, found: list[Site]) -> None:
        self._sites = found
        self._seen: Counter[str] = Counter()
        self._settled: set[Call] = set()
        self._values: dict[str, tuple[Tensor, Tensor]] = {}
        self._wanted: Call | None = None
        self.found: dict[Call, Population] = {}

    @contextmanager
    def attached(self) -> Iterator[None]:
        hooks = []
        try:
            for site in self._sites:
                hooks.append(site.layer.register_forward_pre_hook(partial(self._before, site), with_kwargs=True))
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def want(self, call: Call) -> None:
        """From now on only this call is measured, anew, and each forward ends there."""
        self._wanted = call
        self.found = {}

    def settle(self, call: Call, values: tuple[Tensor, Tensor]) -> None:
        """From now on the layer goes by these statistics, in this call and those settled before."""
        self._settled.add(call)
        self._values[call[0]] = values

    def forward(self, run: Callable[[Any], None], batch: Any) -> None:
        self._seen.clear()
        try:
            run(batch)
        except _Reached:
            pass

    def by_layer(self) -> dict[str, Population]:
        """What was found, over all calls of a layer."""
        parts: dict[str, list[Population]] = {}
        for (name, _), population in self.found.items():
            parts.setdefault(name, []).append(population)
        return {name: Population.merge(of_calls) for name, of_calls in parts.items()}

    @torch.no_grad()  # whatever the model does with gradients
    def _before(self, site: Site, layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        call = site.name, self._seen[site.name]
        self._seen[site.name] += 1
        if call in self._settled:
            site.write(*self._values[site.name])
            return
        batch = measured(layer, args[0] if args else kwargs.get("input"), kwargs.get("mask"))
        if batch is None:
            return  # the layer will say what it expected
        if self._wanted in (None, call):
            new = Population.of_batch(batch)
            self.found[call] = Population.merge([self.found[call], new]) if call in self.found else new
        if call == self._wanted:
            raise _Reached
        site.go_by(batch)
