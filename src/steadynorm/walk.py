"""Finding the batch normalization layers of a model."""

from __future__ import annotations

from torch import nn

from .errors import InvalidArgumentError
from .nn.batchnorm import _BatchNorm


def batch_norms(who: str, model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Every batch normalization layer by its name in the model, a shared one once; "" for the model itself.

    Raises:
        InvalidArgumentError (a ValueError): there is none, or `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"{who}: expected a torch.nn.Module, got {type(model).__name__}.")
    found = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    }
    if not found:
        raise InvalidArgumentError(
            f"{who}: expected a model with batch normalization layers, got a {type(model).__name__} without any. "
            "Pass the model that holds them."
        )
    return found


def own_batch_norms(who: str, model: nn.Module) -> dict[str, _BatchNorm]:
    """`batch_norms` of a model that has only steadynorm's.

    Raises:
        InvalidArgumentError (a ValueError): as there, or one of them is torch's own.
    """
    found: dict[str, _BatchNorm] = {}
    for name, layer in batch_norms(who, model).items():
        if not isinstance(layer, _BatchNorm):
            kind = f"{type(layer).__module__}.{type(layer).__name__}"
            raise InvalidArgumentError(
                f"{who}: expected layers of steadynorm, got {kind} at {name!r}, which keeps its moments to itself. "
                "Build the model with steadynorm's layers."
            )
        found[name] = layer
    return found
