"""The engine: layers become other layers in place, all of them or none.

A layer changes its class and its attributes and stays the object that it was, as torch's lazy modules and `fully_shard`
have it. So every parent, every name, every list and closure that holds it follows, a shared layer is changed once, and
the model itself can be the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import InvalidArgumentError, ModelError

FilterFn = Callable[[nn.Module, str], bool]
"""Whether a layer is meant, from the layer and its name in the model."""


def check_model(who: str, model: Any) -> None:
    """Raises InvalidArgumentError for what is no module, ModelError for a model that others have taken apart."""
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"{who}: expected a torch.nn.Module, got {type(model).__name__}.")
    for name, module in model.named_modules():
        if (remedy := _wrapper(module)) is not None:
            raise ModelError(
                f"{who}: expected a plain model, got {type(module).__name__} at {name!r}, which keeps what it knows of "
                f"the layers. {remedy}"
            )


def _wrapper(module: nn.Module) -> str | None:
    """What to do instead, for a module that wraps or compiles others."""
    if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return "Change model.module, before it is wrapped."
    kinds = {base.__name__ for base in type(module).__mro__}
    if kinds & {"FullyShardedDataParallel", "FSDPModule"}:
        return "Change the model before it is sharded."
    if isinstance(module, torch.jit.ScriptModule):
        return "Change the model before it is scripted."
    if "OptimizedModule" in kinds or module._compiled_call_impl is not None:
        return "Change the model before it is compiled."
    return None


@contextmanager
def all_or_nothing(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Iterator[None]:
    """Puts classes, attributes, children, parameters and hooks back where an exception leaves the context.

    Values of tensors are not put back: change them last, or not at all.
    """
    before = [_Snapshot(module) for module in model.modules()]
    groups = [] if optimizer is None else [(group, _lists(group)) for group in optimizer.param_groups]
    state = {} if optimizer is None else dict(optimizer.state)
    try:
        yield
    except BaseException:
        for snapshot in before:
            snapshot.restore()
        for group, lists in groups:
            group.update(lists)
        if optimizer is not None:
            optimizer.state.clear()
            optimizer.state.update(state)
        raise


def _lists(group: dict[str, Any]) -> dict[str, list[Any]]:
    """The parameters of a group, and their names where the optimizer knows them."""
    return {name: list(group[name]) for name in ("params", "param_names") if name in group}


class _Snapshot:
    """A module's class and attributes, and what its dictionaries of parameters, children and hooks hold."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind, self.attributes = module, type(module), dict(module.__dict__)
        self.inside = {name: dict(value) for name, value in self.attributes.items() if isinstance(value, dict)}

    def restore(self) -> None:
        """Into the same dictionaries, of which the handles of hooks know."""
        for name, content in self.inside.items():
            self.attributes[name].clear()
            self.attributes[name].update(content)
        _turn(self.module, self.kind, self.attributes)


def become_(layer: nn.Module, new: nn.Module) -> None:
    """`layer` is from now on what `new` is; nobody else may hold `new`."""
    _turn(layer, type(new), new.__dict__)


def _turn(layer: nn.Module, kind: type[nn.Module], attributes: dict[str, Any]) -> None:
    layer.__class__ = kind
    object.__setattr__(layer, "__dict__", attributes)


def original_of(layer: nn.Module) -> nn.Module:
    """What `layer` is now, as another object, which `become_` can give back to it."""
    twin = type(layer).__new__(type(layer))
    object.__setattr__(twin, "__dict__", dict(layer.__dict__))
    return twin


def carry(layer: nn.Module, new: nn.Module) -> None:
    """Gives `new` what any layer may have: mode, hooks of every kind."""
    for name, value in layer.__dict__.items():
        if name == "training" or "_hook" in name:
            new.__dict__[name] = value


def replace_child_(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """`new` in place of `old` under every parent and name. The model itself cannot be replaced so."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old and parent is not new:
                parent._modules[name] = new


def check_optimizer(who: str, optimizer: torch.optim.Optimizer | None, neighbours: Iterable[nn.Parameter]) -> None:
    """Raises InvalidArgumentError unless the optimizer has the parameters beside which new ones belong."""
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise InvalidArgumentError(f"{who}: expected a torch.optim.Optimizer, got {type(optimizer).__name__}.")
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if any(id(parameter) not in known for parameter in neighbours):
        raise InvalidArgumentError(
            f"{who}: expected the optimizer of this model, got one without the parameters of layers that change. "
            "Pass the one that was built from model.parameters()."
        )


def keep_in_step_(
    optimizer: torch.optim.Optimizer | None,
    model: nn.Module,
    old: Iterable[nn.Parameter],
    added: Iterable[tuple[nn.Parameter, nn.Parameter]],
) -> None:
    """Takes `old` parameters that the model has no more out of an optimizer; puts each added one beside another.

    Where the optimizer knows names, the model's parameters have there the names that they have now.
    """
    if optimizer is None:
        return
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for new, neighbour in added:
        for group in optimizer.param_groups:
            if any(parameter is neighbour for parameter in group["params"]):
                group["params"].append(new)
                group.get("param_names", []).append(names[id(new)])
    gone = set(map(id, old)) - set(names)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in gone:
                optimizer.state.pop(parameter, None)
        if "param_names" in group:
            named = zip(group["params"], group["param_names"], strict=True)
            group["param_names"] = [names.get(id(p), name) for p, name in named if id(p) not in gone]
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in gone]
