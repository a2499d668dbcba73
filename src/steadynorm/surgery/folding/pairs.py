"""Which norms can be folded, into what, and why the others cannot.

A norm is folded where that is right at every one of its calls, into layers of which every call is beside that norm. The
decision looks at the architecture and the flow, never at the values of weights: so a checkpoint of one folded model
fits every folded model of that architecture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn
from torch.nn.modules.conv import _ConvTransposeNd

from .flow import Flow, Part, between, bypass_, changes_in_place, input_of, is_flatten, skip_identities_, uses
from .layers import dims, epilogue, group_size, holds, is_known, is_linear, is_norm, obstacle
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


class _Unfit(Exception):
    """Why a norm is not folded in some way."""


@dataclass
class Plan:
    """What is folded, in the order in which it is to be done, and why the other norms are not."""

    folds: list[Fold] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)


def plan(model: nn.Module, flow: Flow, seen: Seen) -> Plan:
    """Decides norm by norm, first into what comes before it, then after it, then norms into norms, until none is left.

    The graphs of `flow` are shortened as norms go.
    """
    planner, found = _Planner(model, flow, seen), Plan()
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
                except _Unfit as reason:
                    if way != planner.merged and str(reason) not in reasons[name]:
                        reasons[name].append(str(reason))
                    continue
                planner.shorten_(fold)
                found.folds.append(fold)
                folded.add(name)
            if folded:
                break
        if not folded:
            found.kept = {name: "; ".join(texts) for name, texts in reasons.items()}
            break
        left = [name for name in left if name not in folded]
    return found


class _Planner:
    def __init__(self, model: nn.Module, flow: Flow, seen: Seen) -> None:
        self.model, self.flow, self.seen = model, flow, seen
        self.names = {module: name for name, module in model.named_modules()}
        self.done: set[str] = set()
        self.sites: dict[str, list[tuple[Part, fx.Node]]] = {}
        self.unfit = {name: self._outside(where) for name, where in seen.outside.items()}
        for part in flow.parts:
            self._enter_(part)
        for part in flow.parts:
            skip_identities_(part, model)

    def _enter_(self, part: Part) -> None:
        """Notes where layers are called, and which of them may not be touched."""
        for path in part.opaque:
            for layer in filter(is_known, self.model.get_submodule(path).modules()):
                self.unfit.setdefault(self.names[layer], f"it is called inside {_who(path)}, which is not traced")
        strayed = f"the forward of {_who(part.name)} went another way than torch.fx traced it"
        for node in part.graph.nodes:
            if node.op == "call_module" and is_known(module := self.model.get_submodule(str(node.target))):
                name = self.names[module]
                self.sites.setdefault(name, []).append((part, node))
                if part.name in self.seen.strayed:
                    self.unfit.setdefault(name, strayed)
            elif node.op == "get_attr":
                for name in self._holders(str(node.target)):
                    self.unfit.setdefault(name, f"the forward of {_who(part.name)} reads {node.target!r} itself")

    def _holders(self, path: str) -> list[str]:
        """The layers that hold the parameter or buffer of this name."""
        owner, _, name = path.rpartition(".")
        tensor = getattr(self.model.get_submodule(owner), name, None)
        return [name for module, name in self.names.items() if is_known(module) and holds(module, tensor)]

    def _outside(self, where: str) -> str:
        """Why a layer called in there is not known."""
        if is_known(self.model):
            return "it is the whole model: nothing is beside it"
        names = [where[:end] for end in range(len(where), -1, -1) if end in (0, len(where)) or where[end] == "."]
        name = next((name for name in names if name in self.flow.untraced), None)
        if name is None:
            return f"it is called inside {_who(where)}, which is not traced"
        return f"the forward of {_who(name)} cannot be traced ({self.flow.untraced[name]:.160})"

    def check(self, name: str) -> None:
        """Raises _Unfit for a layer that cannot be changed wherever it is."""
        reason = self.unfit.get(name) or obstacle(self.model.get_submodule(name))
        if reason is None and name not in self.seen.dims:
            reason = "it is not called on the example"
        if reason is None and name not in self.sites:
            reason = "it is called where nothing is traced"
        if reason is not None:
            raise _Unfit(reason)

    def after(self, name: str, wanted: Callable[[nn.Module], bool] = is_linear) -> Fold:
        """Into the convolutions and linear layers before it."""
        targets: list[str] = []
        for _, node in self._sites(name):
            source = input_of(node)
            target = self._layer(source)
            if target is None or not wanted(self.model.get_submodule(target)):
                raise _Unfit(f"it comes after {self._describe(source)}")
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
                raise _Unfit(f"the output of {target!r} is used {len(users)} times")
            if self._layer(users[0]) != name or input_of(users[0]) is not node:
                raise _Unfit(f"{target!r} is called {len(self.sites[target])} times, and not always before this norm")
        self._check_shapes(name, target, into=False)

    def merged(self, name: str) -> Fold:
        """Into the norm before it."""
        if group_size(self.model.get_submodule(name)) > 1:
            raise _Unfit("it mixes channels")
        fold = self.after(name, is_norm)
        for target in fold.targets:
            if self._has_extras(target) or epilogue(self.model.get_submodule(target)) is not None:
                raise _Unfit(f"the norm before it, {target!r}, has an activation, a mask or a residual")
        return fold

    def before(self, name: str) -> Fold:
        """Into the convolutions and linear layers after it."""
        sites = self._sites(name)
        if epilogue(self.model.get_submodule(name)) is not None or self._has_extras(name):
            raise _Unfit("its activation or residual comes before the next layer")
        targets: dict[str, bool] = {}
        for part, node in sites:
            users = self._through_flatten(node)
            if not users:
                raise _Unfit("nothing uses its output")
            for user, flattened in users:
                target = self._layer(user)
                if target is None or not is_linear(self.model.get_submodule(target)):
                    raise _Unfit(f"{self._describe(user)} follows it")
                if any(changes_in_place(other, self.model) for other in between(part, node, user)):
                    raise _Unfit(f"something is changed in place between it and {target!r}")
                targets[target] = targets.get(target, False) or flattened
        for target, flattened in targets.items():
            self._check_before(name, target, flattened)
        behind = frozenset(target for target, flattened in targets.items() if flattened)
        return Fold(name, tuple(targets), False, flattened=behind)

    def _check_before(self, name: str, target: str, flattened: bool) -> None:
        self._check_target(target)
        for _, node in self.sites[target]:
            source = input_of(node)
            behind = source is not None and is_flatten(source, self.model)
            if behind != flattened or self._layer(input_of(source) if behind else source) != name:
                raise _Unfit(f"{target!r} is called {len(self.sites[target])} times, and not always after this norm")
        layer: Any = self.model.get_submodule(target)
        if isinstance(layer, _ConvTransposeNd):
            if {*layer.kernel_size, *layer.stride} != {1} or any((*layer.padding, *layer.output_padding)):
                raise _Unfit(f"{target!r} is transposed: its outputs do not all see as many inputs")
        elif not isinstance(layer, nn.Linear) and layer.padding_mode == "zeros":
            if any(layer._reversed_padding_repeated_twice):
                raise _Unfit(f"{target!r} pads by zeros, which the norm would have shifted")
        if flattened:
            if not isinstance(layer, nn.Linear):
                raise _Unfit(f"a flatten stands between it and {target!r}")
        else:
            self._check_shapes(name, target, into=True)
            self._check_fed(target, {name})

    def _check_fed(self, layer: str, by: set[str]) -> None:
        """Raises _Unfit if other values reached a layer than those that its source in the graph gave."""
        found, passed = set(self.seen.fed[layer]), set()
        while gone := found & self.done - by - passed:
            passed |= gone
            found = (found - gone).union(*(self.seen.fed[name] for name in gone))
        if found != by:
            raise _Unfit(f"something else reached {layer!r} on the example than torch.fx traced")

    def _check_target(self, target: str) -> None:
        try:
            self.check(target)
        except _Unfit as reason:
            raise _Unfit(f"{target!r} beside it cannot be changed: {reason}") from None

    def _check_shapes(self, name: str, target: str, into: bool) -> None:
        layer: Any = self.model.get_submodule(target)
        if is_norm(layer):
            return
        if self.seen.dims[name] != {dims(layer)}:
            got = " or ".join(map(str, sorted(self.seen.dims[name])))
            raise _Unfit(f"channels of {target!r} are not the norm's on the example, of {got} dimensions")
        size = group_size(self.model.get_submodule(name))
        if isinstance(layer, nn.Linear):
            return
        channels = (layer.in_channels if into else layer.out_channels) // layer.groups
        if channels % size != 0:
            raise _Unfit(f"it mixes {size} channels, across the groups of {channels} of {target!r}")

    def shorten_(self, fold: Fold) -> None:
        """Takes the folded norm out of the graphs, or leaves what remains of it."""
        self.done.add(fold.norm)
        if fold.extras or epilogue(self.model.get_submodule(fold.norm)) is not None:
            return
        for _, node in self.sites[fold.norm]:
            source = input_of(node)
            if source is not None:
                bypass_(node, source)

    def _sites(self, name: str) -> list[tuple[Part, fx.Node]]:
        for _, node in self.sites[name]:
            if len(node.args) > 1 or any(node.kwargs.get(key) is not None for key in node.kwargs.keys() - _GIVEN):
                raise _Unfit("it is given a mask")
        return self.sites[name]

    def _has_extras(self, name: str) -> bool:
        return any(node.kwargs.keys() - {"input"} for _, node in self.sites[name])

    def _layer(self, node: fx.Node | None) -> str | None:
        """The name of the layer that a node calls, unless it is a norm that was folded."""
        if node is None or node.op != "call_module":
            return None
        module = self.model.get_submodule(str(node.target))
        name = self.names[module]
        return name if is_known(module) and name not in self.done else None

    def _through_flatten(self, node: fx.Node) -> list[tuple[fx.Node, bool]]:
        """Who uses a node, and whether behind a flatten."""
        found: list[tuple[fx.Node, bool]] = []
        for user in uses(node):
            behind = is_flatten(user, self.model)
            found += [(further, True) for further in uses(user)] if behind else [(user, False)]
        return found

    def _describe(self, node: fx.Node | None) -> str:
        if node is None:
            return "what is no tensor"
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            return f"{self.names[module]!r} ({type(module).__name__})"
        if node.op == "output":
            return "the end of the forward"
        if node.op == "placeholder":
            return f"the input {node.target!r}"
        return f"{getattr(node.target, '__name__', node.target)}()"


_GIVEN = {"input", "residual"}


def _who(name: str) -> str:
    return repr(name) if name else "the model"
