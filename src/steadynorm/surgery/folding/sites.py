"""Where layers are called, as traced and as seen, and what speaks against changing one."""

from __future__ import annotations

from torch import fx, nn

from .flow import Flow, Hooks, Part, is_flatten, skip_identities_, uses
from .layers import holds, is_known, obstacle
from .watch import Place, Seen


class Unfit(Exception):
    """Why a norm is not folded in some way."""


class Sites:
    """The calls of every layer in the graphs, which get shorter as norms go."""

    def __init__(self, model: nn.Module, flow: Flow, seen: Seen) -> None:
        self.model, self.flow, self.seen = model, flow, seen
        self.names = {module: name for name, module in model.named_modules()}
        self.done: set[str] = set()
        self.sites: dict[str, list[tuple[Part, fx.Node]]] = {}
        self.places: dict[fx.Node, Place] = {}
        self.unfit = {name: self._outside(where) for name, where in seen.outside.items()}
        for part in flow.parts:
            self._enter_(part)
        for name, path in seen.read.items():
            self.unfit.setdefault(name, f"the forward reads {path!r} itself on the example")
        for part in flow.parts:
            skip_identities_(part, model)
        self.expected = {node: len(self._through_flatten(node)) for sites in self.sites.values() for _, node in sites}

    def _enter_(self, part: Part) -> None:
        """Notes where layers are called, and which of them may not be touched."""
        for path in part.opaque:
            for layer in filter(is_known, self.model.get_submodule(path).modules()):
                self.unfit.setdefault(self.names[layer], f"it is called inside {_who(path)}, which is not traced")
        strayed = f"the forward of {_who(part.name)} went another way than torch.fx traced it"
        called = 0
        for node in part.graph.nodes:
            if node.op == "call_module" and is_known(module := self.model.get_submodule(str(node.target))):
                name = self.names[module]
                self.sites.setdefault(name, []).append((part, node))
                self.places[node] = (part.name, called)
                called += 1
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

    def partial(self, name: str) -> bool:
        """Whether a layer is called in a forward that is not traced, of which the example takes one branch."""
        return any(part.name for part, _ in self.sites[name])

    def check(self, name: str) -> None:
        """Raises Unfit for a layer that cannot be changed wherever it is."""
        reason = self.unfit.get(name) or obstacle(self.model.get_submodule(name))
        if reason is None and name not in self.seen.dims:
            reason = "it is not called on the example"
        if reason is None and name not in self.sites:
            reason = "it is called where nothing is traced"
        if reason is not None:
            raise Unfit(reason)

    def _check_unseen(self, name: str) -> None:
        """Raises Unfit if the example shows another use of a layer's output than those in the graph."""
        for _, node in self.sites[name]:
            place, expected = self.places[node], self.expected[node]
            found = self.seen.uses.get(place)
            if found is None:
                raise Unfit(f"{name!r} is called where the example does not go, too")
            if found != {expected}:
                raise Unfit(
                    f"the output of {name!r} is used {_times(*found)} on the example, {_times(expected)} as torch.fx "
                    "traced it"
                )
            if place in self.seen.kept:
                raise Unfit(f"something keeps the output of {name!r} after the forward")

    def _check_target(self, target: str) -> None:
        try:
            self.check(target)
        except Unfit as reason:
            raise Unfit(f"{target!r} beside it cannot be changed: {reason}") from None

    def _sites(self, name: str) -> list[tuple[Part, fx.Node]]:
        for _, node in self.sites[name]:
            if len(node.args) > 1 or any(node.kwargs.get(key) is not None for key in node.kwargs.keys() - _GIVEN):
                raise Unfit("it is given a mask")
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
        if isinstance(node.target, Hooks):
            return node.target.__name__
        return f"{getattr(node.target, '__name__', node.target)}()"


_GIVEN = {"input", "residual"}


def _who(name: str) -> str:
    return repr(name) if name else "the model"


def _times(*counts: int) -> str:
    if counts == (1,):
        return "once"
    return f"{' or '.join(map(str, sorted(counts)))} times"
