"""Who feeds whom in a model: known by symbolic tracing (torch.fx), never guessed from the order of modules.

What torch.fx cannot trace, a forward that branches on values or shapes, is left alone, and its children are traced each
for itself: within a child the flow is known whatever its parent does. Such a child is a part, and a whole model that
can be traced is one part. Tracing knows no sizes, so what it finds holds for every size.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from .layers import is_known, is_norm

READS_SHAPE = {"size", "dim", "ndimension", "numel", "is_floating_point", "get_device"}
"""Methods of a tensor that its values have no part in."""
SHAPES = {"shape", "ndim", "dtype", "device", "is_cuda", "requires_grad"}
"""Attributes of that kind."""
_DROPS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_DROP_FUNCTIONS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)
_ASSIGNMENTS = (
    *(operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod),
    *(operator.ipow, operator.imatmul, operator.iand, operator.ior, operator.ixor, operator.ilshift, operator.irshift),
)


@dataclass(eq=False)
class Part:
    """A module whose forward is known, as a graph; its nodes' targets are names in the whole model."""

    name: str
    graph: fx.Graph
    opaque: list[str]
    """Modules in it that are called whole, and hold layers we know."""

    def calls(self) -> Iterator[tuple[str, fx.Node]]:
        """The modules it calls, in order."""
        for node in self.graph.nodes:
            if node.op == "call_module":
                yield str(node.target), node


@dataclass
class Flow:
    """The parts of a model, and why the forward of others is not known."""

    parts: list[Part] = field(default_factory=list)
    untraced: dict[str, str] = field(default_factory=dict)


class _Proxy(fx.Proxy):
    """Records `x += y` as such; torch.fx would take it for `x = x + y`, and miss that x changes for others."""


def _recording(function: Any) -> Any:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _function in _ASSIGNMENTS:
    setattr(_Proxy, f"__{_function.__name__}__", _recording(_function))


class _Tracer(fx.Tracer):
    """Keeps layers whole, of whatever class, and sees who reads parameters and buffers without calling their layer."""

    proxy_buffer_attributes = True

    def __init__(self, coarse: bool) -> None:
        super().__init__()
        self._coarse = coarse

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if is_known(m) or super().is_leaf_module(m, module_qualified_name):
            return True
        return self._coarse and not _has_norms(m)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Goes inside without calling hooks, which see tensors in the model: a node stands for them."""
        before, after = (bool(hooks) for hooks in (m._forward_pre_hooks, m._forward_hooks))
        if not (before or after) or self.is_leaf_module(m, self.path_of_module(m)):
            return super().call_module(m, forward, args, kwargs)
        hooks = Hooks(self.path_of_module(m))
        if before:
            args = tuple(self.create_proxy("call_function", hooks, (value,), {}) for value in args)
            kwargs = {name: self.create_proxy("call_function", hooks, (value,), {}) for name, value in kwargs.items()}
        result = super().call_module(m, m.forward, args, kwargs)
        return self.create_proxy("call_function", hooks, (result, args), kwargs) if after else result


class Hooks:
    """Stands in a graph for the hooks of a container, which see values and may change them."""

    def __init__(self, module: str) -> None:
        self.module = module
        self.__name__ = f"hooks of {module!r}"
        self.__module__ = __name__

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Never called: the graph is read, not run."""
        raise NotImplementedError


def trace(model: nn.Module, fixed: dict[str, Any], inside: Mapping[str, dict[str, Any]] | None = None) -> Flow:
    """The flow of a model; it is not run on tensors, and is left as it is.

    Args:
        model: the model.
        fixed: arguments of its forward that are no tensors, with their values.
        inside: the same of modules in it, by name, for when its own forward cannot be traced.
    """
    flow = Flow()
    shared = {id(value): value for value in (*model.parameters(), *model.buffers())}
    given = {**(inside or {}), "": fixed}
    _trace_(copy.deepcopy(model, shared), "", flow, set(), given)  # tracing may leave attributes behind
    return flow


def _trace_(
    module: nn.Module, name: str, flow: Flow, done: set[nn.Module], given: Mapping[str, dict[str, Any]]
) -> None:
    if module in done or is_known(module) or not _has_norms(module):
        return
    done.add(module)
    reason = "it has no forward"
    if type(module).forward is not nn.Module.forward:
        for coarse in (False, True):
            try:
                flow.parts.append(_part(module, name, coarse, given.get(name, {})))
                return
            except Exception as error:  # whatever the user's forward does with what is no tensor
                reason = " ".join(str(error).split()) or type(error).__name__
        flow.untraced[name] = reason
    for child_name, child in module.named_children():
        _trace_(child, f"{name}.{child_name}" if name else child_name, flow, done, given)


def _part(module: nn.Module, name: str, coarse: bool, fixed: dict[str, Any]) -> Part:
    graph = _Tracer(coarse).trace(module, fixed or None)
    opaque = []
    for node in graph.nodes:
        if isinstance(node.target, Hooks):
            node.target = Hooks(f"{name}.{node.target.module}" if name else node.target.module)
        if node.op not in ("call_module", "get_attr"):
            continue
        inner = str(node.target)
        node.target = f"{name}.{inner}" if name else inner
        if node.op == "call_module" and not is_known(called := module.get_submodule(inner)):
            if any(is_known(layer) for layer in called.modules()):
                opaque.append(node.target)
    return Part(name, graph, opaque)


def _has_norms(module: nn.Module) -> bool:
    return any(map(is_norm, module.modules()))


def skip_identities_(part: Part, model: nn.Module) -> None:
    """Takes out of the graph what gives back its input in eval mode: Identity, and dropout of every kind."""
    for node in list(part.graph.nodes):
        if node.op == "call_module":
            module = model.get_submodule(str(node.target))
            hooked = module._forward_hooks or module._forward_pre_hooks
            off = type(module) is nn.Identity or (type(module) in _DROPS and not module.training)
            skipped = off and not hooked and len(node.all_input_nodes) == 1
        else:
            skipped = node.op == "call_function" and node.target in _DROP_FUNCTIONS and _is_off(node)
        if skipped:
            bypass_(node, node.all_input_nodes[0])


def _is_off(dropout: fx.Node) -> bool:
    training = dropout.kwargs.get("training", dropout.args[2] if len(dropout.args) > 2 else True)
    return training is False


def bypass_(node: fx.Node, source: fx.Node) -> None:
    """Takes a node out; who used it uses `source`."""
    node.replace_all_uses_with(source)
    node.graph.erase_node(node)


def input_of(node: fx.Node | None) -> fx.Node | None:
    """What a module is called with."""
    if node is None:
        return None
    given = node.args[0] if node.args else node.kwargs.get("input")
    return given if isinstance(given, fx.Node) else None


def between(part: Part, first: fx.Node, last: fx.Node) -> list[fx.Node]:
    """The nodes that come after the first and before the last."""
    nodes = list(part.graph.nodes)
    return nodes[nodes.index(first) + 1 : nodes.index(last)]


def uses(node: fx.Node) -> list[fx.Node]:
    """Who uses the values of a node, as often as they are given them; not who asks for its shape only."""
    found: list[fx.Node] = []
    for user in node.users:
        if not _reads_shape(user):
            given: list[fx.Node] = []
            fx.map_arg((user.args, user.kwargs), given.append)
            found.extend(user for one in given if one is node)
    return found


def _reads_shape(user: fx.Node) -> bool:
    if user.op == "call_method":
        return user.target in READS_SHAPE
    return user.op == "call_function" and user.target is getattr and user.args[1] in SHAPES


def changes_in_place(node: fx.Node, model: nn.Module) -> bool:
    """Whether a node may change a tensor that it is given."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    if node.op == "call_module":
        return any(map(_may_change, model.get_submodule(str(node.target)).modules()))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    named = name.endswith("_") or name in ("setitem", "setattr", "delitem") or node.target in _ASSIGNMENTS
    told = any(value is True for value in (*node.args, node.kwargs.get("inplace"))) or "out" in node.kwargs
    declared = bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))
    return named or told or declared or not _is_torchs(node)


def _may_change(module: nn.Module) -> bool:
    plain = type(module).__module__.startswith(("torch.nn.", "steadynorm.")) or is_known(module)
    hooked = bool(module._forward_hooks or module._forward_pre_hooks)
    return bool(getattr(module, "inplace", False)) or hooked or not plain


def _is_torchs(node: fx.Node) -> bool:
    if node.op == "call_method" or isinstance(node.target, str):
        return True
    module = getattr(node.target, "__module__", None) or ""
    return module.partition(".")[0] in ("torch", "_operator", "builtins", "math", "")


def is_flatten(node: fx.Node, model: nn.Module) -> bool:
    """Whether a node flattens everything behind the batch: (N, C, *) → (N, C * positions)."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1)
    if node.op in ("call_function", "call_method") and node.target in (torch.flatten, "flatten"):
        given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | dict(node.kwargs)
        return (given.get("start_dim", 0), given.get("end_dim", -1)) == (1, -1)
    return False
