"""Finding the batch normalization layers of a model."""

from __future__ import annotations

from torch import nn

from .errors import InvalidArgumentError

BATCH_NORM = nn.modules.batchnorm._BatchNorm
"""What torch's layers, ours and synchronized ones are."""


def batch_norms(who: str, model: nn.Module) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """Every batch normalization layer by its name in the model, a shared one once; "" for the model itself.

    Raises:
        InvalidArgumentError (a ValueError): there is none, or `model` is no module.
    """
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"{who}: expected a torch.nn.Module, got {type(model).__name__}.")
    found = {name: module for name, module in model.named_modules() if isinstance(module, BATCH_NORM)}
    if not found:
        raise InvalidArgumentError(
            f"{who}: expected a model with batch normalization layers, got a {type(model).__name__} without any. "
            "Pass the model that holds them."
        )
    return found
