"""The model run once on the example: whether its forward goes as it was traced, and what becomes of each output.

Every function of torch that is given a layer's output is counted, and every layer: what torch.fx does not see, behind
`isinstance` or in a hook, shows as a use too many, or as an output that something keeps after the forward.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .flow import READS_SHAPE, SHAPES, Flow
from .layers import is_known, is_norm

Place = tuple[str, int]
"""A call of a layer: the name of the part, and which of the part's calls it is."""


@dataclass
class Seen:
    """What the run showed, by layer (its first name in the model) or by place.

    Attributes:
        dims: the numbers of dimensions of a layer's inputs, in the order of the first calls.
        fed: the layers whose outputs were its inputs, the same tensors and not changed since, or flattened; "" for
            anything else.
        outside: who called a layer that no part's graph knows of, such as a forward that cannot be traced.
        strayed: parts whose forward called other layers than their graph has, or in another order.
        uses: how often the outputs at a place were given to a function or a layer.
        kept: places of which an output was alive after the forward.
        read: parameters and buffers of a layer that the forward reads without calling the layer.
        changed: the norms before a layer whose own input had been changed in place when the layer was called.
    """

    dims: dict[str, set[int]] = field(default_factory=dict)
    fed: dict[str, set[str]] = field(default_factory=dict)
    outside: dict[str, str] = field(default_factory=dict)
    strayed: set[str] = field(default_factory=set)
    uses: dict[Place, set[int]] = field(default_factory=dict)
    kept: set[Place] = field(default_factory=set)
    read: dict[str, str] = field(default_factory=dict)
    changed: dict[str, set[str]] = field(default_factory=dict)


@dataclass(eq=False)
class _Uses:
    """Of the output of one call."""

    place: Place | None
    count: int = 0


@dataclass(eq=False)
class _Call:
    """One call of a layer, as long as its output lives, or that of a layer that was given it.

    Attributes:
        name: the layer's.
        uses: of its output.
        given: what a norm was given; shares memory and version with the input itself.
        version: of that, when it was given.
        source: the call whose output it was given.
    """

    name: str
    uses: _Uses
    given: Tensor | None = None
    version: int = 0
    source: _Call | None = None


class _Output(NamedTuple):
    """A layer's output, or that flattened."""

    tensor: weakref.ref[Tensor]
    version: int
    call: _Call


def watch(model: nn.Module, flow: Flow, run: Callable[[nn.Module], Any]) -> Seen:
    """Runs a model that may be thrown away; layers have one name, their first."""
    watcher = _Watcher(model, flow)
    with watcher:
        result = run(model)
    watcher.conclude(result)  # in which a layer's output is kept, too
    return watcher.seen


class _Watcher(TorchFunctionMode):
    def __init__(self, model: nn.Module, flow: Flow) -> None:
        super().__init__()
        names = {module: name for name, module in model.named_modules()}
        self.seen = Seen()
        self.expected = {part.name: [names[layer] for layer in _layers(model, part)] for part in flow.parts}
        self.forwards: list[tuple[str, list[str]]] = []
        self.running: list[_Call] = []
        self.uses: list[_Uses] = []
        self.outputs: dict[int, _Output] = {}
        self.held: dict[int, tuple[str, str]] = {}
        whole = {names[model.get_submodule(target)] for part in flow.parts for target in part.opaque}
        for name, module in model.named_modules():
            if name in self.expected or name in whole:
                module.register_forward_pre_hook(self._begin(name))
                module.register_forward_hook(self._end(name))
            elif is_known(module):
                for held, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
                    self.held[id(value)] = name, f"{name}.{held}".lstrip(".")
                module.register_forward_pre_hook(self._call(name), with_kwargs=True)
                module.register_forward_hook(self._give, always_call=True)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.running:  # inside a layer
            return func(*args, **kwargs)
        values = tree_leaves((args, kwargs))
        found = [output for value in values if (output := self._find(value))]
        if not _asks_for_shape(func):
            self.seen.read.update(self.held[id(value)] for value in values if id(value) in self.held)
        result = func(*args, **kwargs)
        if not found or _asks_for_shape(func):
            return result
        same = self._find(result)
        if same is not None and any(same is one for one in found) and not _changes(func, same, result):
            return result  # dropout that is off
        if getattr(func, "__name__", "") == "flatten" and isinstance(result, Tensor):
            self._remember(result, found[0].call)
            return result
        for output in found:
            output.call.uses.count += 1
        return result

    def conclude(self, result: Any) -> None:
        """Counts, when the forward is over."""
        returned = {id(value) for value in tree_leaves(result)}
        if self.outputs.keys() - returned:  # kept, or left in a cycle that nothing refers to
            gc.collect()
        for uses in self.uses:
            if uses.place is not None:
                self.seen.uses.setdefault(uses.place, set()).add(uses.count)
        for output in self.outputs.values():
            if output.call.uses.place is not None:
                self.seen.kept.add(output.call.uses.place)

    def _find(self, value: Any) -> _Output | None:
        output = self.outputs.get(id(value))
        return output if output is not None and output.tensor() is value else None

    def _begin(self, name: str) -> Callable[..., None]:
        return lambda *_: self.forwards.append((name, []))

    def _end(self, name: str) -> Callable[..., None]:
        def leave(*_: object) -> None:
            called = self.forwards.pop()[1]
            if name in self.expected and called != self.expected[name]:
                self.seen.strayed.add(name)

        return leave

    def _call(self, name: str) -> Callable[..., None]:
        def note(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            values = tree_leaves((args, kwargs))
            given = next((value for value in values if isinstance(value, Tensor)), None)
            call = _Call(name, _Uses(self._enter(name)))
            self.uses.append(call.uses)
            self.running.append(call)  # from here on functions are the layer's own, or ours
            self.seen.dims.setdefault(name, set()).add(-1 if given is None else given.dim())
            self._feed(call, given)
            for value in values:
                if (output := self._find(value)) is not None:
                    output.call.uses.count += 1
            if given is not None and is_norm(layer):
                call.given, call.version = given.detach(), version_of(given)

        return note

    def _enter(self, name: str) -> Place | None:
        """Where a layer is called."""
        if self.forwards and self.forwards[-1][0] in self.expected:
            part, called = self.forwards[-1]
            called.append(name)
            return part, len(called) - 1
        self.seen.outside[name] = self.forwards[-1][0] if self.forwards else ""
        return None

    def _feed(self, call: _Call, given: Tensor | None) -> None:
        """Notes whose output a layer is given, and which norms on the way were given something changed since."""
        output = self._find(given)
        same = output is not None and given is not None and output.version == version_of(given)
        call.source = output.call if same and output is not None else None
        self.seen.fed.setdefault(call.name, set()).add("" if call.source is None else call.source.name)
        source = call.source
        while source is not None:
            if source.given is not None and version_of(source.given) != source.version:
                self.seen.changed.setdefault(call.name, set()).add(source.name)
            source = source.source

    def _give(self, _: nn.Module, __: object, output: Any) -> None:
        if isinstance(output, Tensor):
            self._remember(output, self.running[-1])
        self.running.pop()

    def _remember(self, output: Tensor, call: _Call) -> None:
        """Knows a tensor again as long as it lives."""
        key, outputs = id(output), self.outputs

        def forget(gone: weakref.ref[Tensor]) -> None:
            if key in outputs and outputs[key].tensor is gone:
                del outputs[key]

        outputs[key] = _Output(weakref.ref(output, forget), version_of(output), call)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; tensors of inference mode do not count that."""
    return 0 if tensor.is_inference() else tensor._version


def _changes(func: Any, before: _Output, result: Any) -> bool:
    """Whether a function that returns what it was given has changed it."""
    name = getattr(func, "__name__", "")
    return version_of(result) != before.version or (name.endswith("_") and not name.endswith("__"))


def _asks_for_shape(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    if name == "__get__":
        return getattr(getattr(func, "__self__", None), "__name__", "") in SHAPES
    return name in READS_SHAPE


def _layers(model: nn.Module, part: Any) -> list[nn.Module]:
    called = [model.get_submodule(target) for target, _ in part.calls()]
    return [module for module in called if is_known(module)]
