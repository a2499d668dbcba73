"""What reaches the layers of a model, measured as it goes in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError
from .population import Population, measured
from .probe import is_known, normalizes_its_input
from .sites import Site


class _Reached(BaseException):
    """Ends a forward that has shown what was wanted; no `except Exception` in a model stops it."""


Call = tuple[str, int]
"""A layer's name, and how often it was called before in the same forward."""


class Meter:
    """Measures what reaches layers: all of them, each normalizing by its batch, or one, with all as they are.

    Attributes:
        found: what was measured, by call.
        behind: while all are measured, for each layer in the order of first calls, the layers that were called before
            one of its calls; itself where it was called several times in a forward.
    """

    def __init__(self, who: str, found: list[Site]) -> None:
        self._who = who
        self._sites = found
        self._seen: Counter[str] = Counter()
        self._wanted: str | None = None
        self._trusted = {site.name for site in found if is_known(site.layer)}
        self.found: dict[Call, Population] = {}
        self.behind: dict[str, set[str]] = {}

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

    def want(self, name: str) -> None:
        """From now on only this layer is measured, anew, and layers go by the statistics that they have."""
        self._wanted = name
        self.found = {}

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
    def _before(self, site: Site, layer: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        name, call = site.name, (site.name, self._seen[site.name])
        if self._wanted is None:
            self.behind.setdefault(name, set()).update(self._seen)
        self._seen[name] += 1
        if self._wanted not in (None, name):
            return
        x, rest = args[0] if args else kwargs.get("input"), {k: v for k, v in kwargs.items() if args or k != "input"}
        batch = measured(layer, x, kwargs.get("mask"))
        if name not in self._trusted:
            self._probe(site, x if batch is not None else None, args[1:], rest)
        if batch is None:
            return  # the layer will say what it expected
        new = Population.of_batch(batch)
        self.found[call] = Population.merge([self.found[call], new]) if call in self.found else new
        if self._wanted is None:
            site.go_by(batch, self.found[call].pooled)
        elif name not in self.behind.get(name, ()):
            raise _Reached

    def _probe(self, site: Site, x: Tensor | None, args: tuple, kwargs: dict[str, Any]) -> None:
        """Raises ModelError for a layer that normalizes something else than what it is given."""
        if x is not None and normalizes_its_input(site, x, args, kwargs):
            if x.numel() > 0:
                self._trusted.add(site.name)
            return
        kind = f"{type(site.layer).__module__}.{type(site.layer).__qualname__}"
        raise ModelError(
            f"{self._who}: expected layers that normalize dimension 1 of what they are given, (N, C, *) with "
            f"C={site.layer.num_features}, got {kind} at {site.place}, whose own forward does something else. Move "
            "what it does with its input into a layer before it, and put torch's or steadynorm's layer there."
        )
