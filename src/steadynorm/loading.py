"""What a command line names: Python objects by `package.module:name`, weights by file."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .errors import CheckpointError, InvalidArgumentError


def load_object(who: str, path: str) -> Any:
    """What `package.module:name` names; the current folder is looked in too, as `python -m` does.

    Raises:
        InvalidArgumentError (a ValueError): not of that form, or no such module or name.
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise InvalidArgumentError(f"{who}: expected package.module:name, got {path!r}, such as my_code.models:build.")
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 (sys.path holds strings)
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name + ".").startswith(error.name + "."):
            raise  # found, and something that it imports is missing
        raise InvalidArgumentError(
            f"{who}: expected a module that can be imported, got {module_name!r} ({error}). Run it in the folder that "
            "holds the module, or install the module."
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise InvalidArgumentError(f"{who}: {module_name} has no {name!r}. Check the spelling of {path!r}.")
        found = getattr(found, part)
    return found


def build_model(who: str, path: str) -> nn.Module:
    """The model that `package.module:factory` makes when called without arguments.

    Raises:
        InvalidArgumentError (a ValueError): as `load_object`, or it is no factory, or makes no model.
    """
    factory = load_object(who, path)
    if not callable(factory) or isinstance(factory, nn.Module):
        raise InvalidArgumentError(
            f"{who}: expected a function or class that makes the model, got {type(factory).__name__} at {path!r}."
        )
    model = factory()
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"{who}: expected {path!r} to make a torch.nn.Module, got {type(model).__name__}.")
    return model


def load_weights_(who: str, model: nn.Module, file: Path) -> None:
    """Loads a state dict, or a checkpoint that holds one under "state_dict" or "model", into the model, strictly.

    Nothing is unpickled but tensors and plain containers; what modules keep as `_extra_state` may be any of these.

    Raises:
        CheckpointError (a ValueError): no such file, not weights, or another model's; the model is as before.
    """
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise CheckpointError(
            f"{who}: expected weights in {file}, got a file that cannot be read as such ({reason}). Save them by "
            "torch.save(model.state_dict(), FILE); nothing else is ever unpickled."
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if wrong := _fault(found):
        raise CheckpointError(
            f"{who}: expected a state dict (names and tensors) in {file}, got {wrong}. Save it by "
            "torch.save(model.state_dict(), FILE)."
        )
    before = {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in model.state_dict().items()
        if not is_lazy(value)
    }
    try:
        model.load_state_dict(found)
    except Exception as error:
        model.load_state_dict(before, strict=False)  # torch has loaded what fits
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{who}: the weights in {file} are of another model: {reason:.500}") from error


def _fault(found: Any) -> str | None:
    """What it is instead of a state dict; None if it is one."""
    if not isinstance(found, Mapping):
        return f"a {type(found).__name__}"
    for name, value in found.items():
        if not isinstance(name, str):
            return f"a mapping with the key {name!r}"
        if not isinstance(value, Tensor) and name.rpartition(".")[2] != "_extra_state":
            return f"a mapping whose {name!r} is of type {type(value).__name__}"
    return None
