"""What `fold` is called with, and its refusals."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import InvalidArgumentError, ModelError
from ..example import Example
from .layers import is_norm
from .proof import twin

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
