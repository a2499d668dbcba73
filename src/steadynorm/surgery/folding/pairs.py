"""Which norms can be folded, into what, and why the others cannot.

A norm is folded where that is right at every one of its calls, into layers of which every call is beside that norm. The
decision looks at the architecture and the flow, never at the values of weights: so a checkpoint of one folded model
fits every folded model of that architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from .flow import Flow, between, bypass_, changes_in_place, input_of, is_flatten, uses
from .layers import dims, epilogue, group_size, is_linear, is_norm, pads_by_zeros
from .sites import Sites, Unfit
from .watch import Seen


@dataclass(frozen=True)
class Fold:
    """A norm that goes into the layers before it, or into those after it.

    Attributes:
        norm: its name.
        targets: names of the layers that take it in.
        after: whether it comes after them.
        extras: whether it is called with more than its input, such as a residual.
        flattened: those of the targets that a flatten stands before.
    """

    norm: str
    targets: tuple[str, ...]
    after: bool
    extras: bool = False
    flattened: frozenset[str] = frozenset()


@dataclass
class Plan:
    """What is folded, in the order in which it is to be done, and why the other norms are not."""

    folds: list[Fold] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    partial: set[str] = field(default_factory=set)
    """Norms that are gone from inside a forward that is not traced."""


def plan(model: nn.Module, flow: Flow, seen: Seen, kept: Mapping[str, str]) -> Plan:
    """Decides norm by norm, first into what comes before it, then after it, then norms into norms, until none is left.

    The graphs of `flow` are shortened as norms go.

    Args:
        model: the model.
        flow: who feeds whom, as traced.
        seen: what a run on the example showed.
        kept: norms that stay whatever surrounds them, with the reason.
    """
    planner, found = _Planner(model, flow, seen), Plan()
    planner.unfit.update(kept)
    left = [name for name, module in model.named_modules() if is_norm(module)]
    ways = (planner.after, planner.before, planner.merged)
    while left:
        reasons: dict[str, list[str]] = {name: [] for name in left}
        folded = set()
        for way in ways:
            for name in left:
                try:
                    planner.check(name)
                    fold = way(name)
                except Unfit as reason:
                    if way != planner.merged and str(reason) not in reasons[name]:
                        reasons[name].append(str(reason))
                    continue
                planner.shorten_(fold)
                found.folds.append(fold)
                folded.add(name)
                if planner.partial(name):
                    found.partial.add(name)
            if folded:
                break
        if not folded:
            found.kept = {name: "; ".join(texts) for name, texts in reasons.items()}
            break
        left = [name for name in left if name not in folded]
    return found


class _Planner(Sites):
    def after(self, name: str, wanted: Callable[[nn.Module], bool] = is_linear) -> Fold:
        """Into the convolutions and linear layers before it."""
        targets: list[str] = []
        for _, node in self._sites(name):
            source = input_of(node)
            target = self._layer(source)
            if target is None or not wanted(self.model.get_submodule(target)):
                raise Unfit(f"it comes after {self._describe(source)}")
            if target not in targets:
                self._check_after(name, target)
                targets.append(target)
        self._check_fed(name, set(targets))
        return Fold(name, tuple(targets), True, self._has_extras(name))

    def _check_after(self, name: str, target: str) -> None:
        self._check_target(target)
        for _, node in self.sites[target]:
            users = uses(node)
            if len(users) != 1:
                raise Unfit(f"the output of {target!r} is used {len(users)} times")
            if self._layer(users[0]) != name or input_of(users[0]) is not node:
                raise Unfit(f"{target!r} is called {len(self.sites[target])} times, and not always before this norm")
        self._check_shapes(name, target, into=False)
        self._check_unseen(target)

    def merged(self, name: str) -> Fold:
        """Into the norm before it."""
        if group_size(self.model.get_submodule(name)) > 1:
            raise Unfit("it mixes channels")
        fold = self.after(name, is_norm)
        for target in fold.targets:
            if self._has_extras(target) or epilogue(self.model.get_submodule(target)) is not None:
                raise Unfit(f"the norm before it, {target!r}, has an activation, a mask or a residual")
        return fold

    def before(self, name: str) -> Fold:
        """Into the convolutions and linear layers after it."""
        sites = self._sites(name)
        if epilogue(self.model.get_submodule(name)) is not None or self._has_extras(name):
            raise Unfit("its activation or residual comes before the next layer")
        targets: dict[str, bool] = {}
        for part, node in sites:
            users = self._through_flatten(node)
            if not users:
                raise Unfit("nothing uses its output")
            for user, flattened in users:
                target = self._layer(user)
                if target is None or not is_linear(self.model.get_submodule(target)):
                    raise Unfit(f"{self._describe(user)} follows it")
                if any(changes_in_place(other, self.model) for other in between(part, node, user)):
                    raise Unfit(f"something is changed in place between it and {target!r}")
                targets[target] = targets.get(target, False) or flattened
        for target, flattened in targets.items():
            self._check_before(name, target, flattened)
        self._check_unseen(name)
        behind = frozenset(target for target, flattened in targets.items() if flattened)
        return Fold(name, tuple(targets), False, flattened=behind)

    def _check_before(self, name: str, target: str, flattened: bool) -> None:
        self._check_target(target)
        for _, node in self.sites[target]:
            source = input_of(node)
            behind = source is not None and is_flatten(source, self.model)
            if behind != flattened or self._layer(input_of(source) if behind else source) != name:
                raise Unfit(f"{target!r} is called {len(self.sites[target])} times, and not always after this norm")
        layer: Any = self.model.get_submodule(target)
        if isinstance(layer, _ConvTransposeNd):
            if {*layer.kernel_size, *layer.stride} != {1} or pads_by_zeros(layer):
                raise Unfit(f"{target!r} is transposed: its outputs do not all see as many inputs")
        elif not isinstance(layer, nn.Linear):
            if pads_by_zeros(layer):
                raise Unfit(f"{target!r} pads by zeros, which the norm would have shifted")
        if flattened:
            if not isinstance(layer, nn.Linear):
                raise Unfit(f"a flatten stands between it and {target!r}")
        else:
            self._check_shapes(name, target, into=True)
        self._check_fed(target, {name})
        if name in self.seen.changed.get(target, ()):
            raise Unfit(f"what {name!r} was given is changed before {target!r} is called")

    def _check_fed(self, layer: str, by: set[str]) -> None:
        """Raises Unfit if other values reached a layer than those that its source in the graph gave."""
        found, passed = set(self.seen.fed[layer]), set()
        while gone := found & self.done - by - passed:
            passed |= gone
            found = (found - gone).union(*(self.seen.fed[name] for name in gone))
            for name in gone:
                self._check_unseen(name)
        if found != by:
            raise Unfit(f"something else reached {layer!r} on the example than torch.fx traced")

    def _check_shapes(self, name: str, target: str, into: bool) -> None:
        layer: Any = self.model.get_submodule(target)
        if is_norm(layer):
            return
        if self.seen.dims[name] != {dims(layer)}:
            got = " or ".join(map(str, sorted(self.seen.dims[name])))
            raise Unfit(f"channels of {target!r} are not the norm's on the example, of {got} dimensions")
        size = group_size(self.model.get_submodule(name))
        if isinstance(layer, nn.Linear):
            return
        channels = (layer.in_channels if into else layer.out_channels) // layer.groups
        if channels % size != 0:
            raise Unfit(f"it mixes {size} channels, across the groups of {channels} of {target!r}")

    def shorten_(self, fold: Fold) -> None:
        """Takes the folded norm out of the graphs, or leaves what remains of it."""
        self.done.add(fold.norm)
        if fold.extras or epilogue(self.model.get_submodule(fold.norm)) is not None:
            return
        for _, node in self.sites[fold.norm]:
            source = input_of(node)
            if source is not None:
                bypass_(node, source)
