"""What `fold` is called with, and its refusals."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InvalidArgumentError, ModelError
from .layers import is_norm
from .proof import Example, twin

_WRAPPERS = (nn.parallel.DistributedDataParallel, nn.DataParallel)


def check_model(who: str, model: Any) -> None:
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod") or isinstance(model, _WRAPPERS):
        raise ModelError(
            f"{who}: expected a plain model, got {type(model).__name__}, which wraps or compiles one. Fold the model "
            "itself (.module of a parallel one, the one given to torch.compile), then wrap it."
        )
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"{who}: expected a torch.nn.Module, got {type(model).__name__}.")
    norms = {name: module for name, module in model.named_modules() if is_norm(module)}
    if not norms:
        raise InvalidArgumentError(
            f"{who}: expected a model with batch normalization layers, got a {type(model).__name__} without any. "
            "There is nothing to fold."
        )
    if any(value.is_meta for value in (*model.parameters(), *model.buffers())):
        raise ModelError(
            f"{who}: expected a model with values, got {type(model).__name__} on the meta device. Call "
            "model.to_empty(device='cpu') and load its weights first."
        )
    training = next((name for name, module in {"": model, **norms}.items() if module.training), None)
    if training is not None:
        what = repr(training) if training else "the model"
        raise ModelError(
            f"{who}: expected a model in eval mode, got {what} in train mode, where batches normalize. Call "
            "model.eval() first."
        )


def example(who: str, given: Any) -> Example:
    if isinstance(given, Tensor):
        return Example((given,), {})
    if isinstance(given, Mapping) and given and all(isinstance(name, str) for name in given):
        return Example((), dict(given))
    if isinstance(given, (tuple, list)) and given:
        return Example(tuple(given), {})
    got = "nothing" if given is None else f"{type(given).__name__} {given!r:.60}"
    raise InvalidArgumentError(
        f"{who}: expected example_inputs, a tensor, a tuple of arguments or a dict of keyword arguments, got {got}. "
        "The proof runs both models on them: give data as the model will see them, such as torch.randn(1, 3, 224, 224)."
    )


def tolerance_of(who: str, model: nn.Module, given: float | None) -> float:
    if given is None:
        dtypes = {value.dtype for value in (*model.parameters(), *model.buffers()) if value.is_floating_point()}
        return math.sqrt(max((torch.finfo(dtype).eps for dtype in dtypes), default=1e-7))
    if not (isinstance(given, (int, float)) and not isinstance(given, bool) and 0 < given < math.inf):
        raise InvalidArgumentError(f"{who}: expected a positive tolerance, got {given!r}.")
    return float(given)


def copies(who: str, model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The model, and the one to fold."""
    try:
        return twin(model), copy.deepcopy(model)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ModelError(
            f"{who}: expected a model that copy.deepcopy can copy, got {type(model).__name__}, which raised "
            f"{type(error).__name__}: {reason:.300}."
        ) from error


def shapes(example: Example) -> str:
    def shape(value: Any) -> str:
        return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__

    given = [*map(shape, example.args), *(f"{name}={shape(value)}" for name, value in example.kwargs.items())]
    return ", ".join(given)
