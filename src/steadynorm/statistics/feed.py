"""How data that come batch by batch go into a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidArgumentError


def check_data(who: str, data: Any, again: bool) -> None:
    """Raises InvalidArgumentError for data that do not come in batches, or only once where they are read again."""
    if isinstance(data, (Tensor, Mapping, str)) or not isinstance(data, Iterable):
        raise InvalidArgumentError(
            f"{who}: expected data that gives batches one by one, such as a DataLoader or a list, got "
            f"{type(data).__name__}. Put a single batch into a list: [batch]."
        )
    if again and isinstance(data, Iterator):
        raise InvalidArgumentError(
            f"{who}: expected data that can be read again and again with sequential=True, got the iterator "
            f"{type(data).__name__}. Pass the DataLoader or the list itself."
        )


def feed(who: str, model: nn.Module, batch: Any, device: torch.device) -> None:
    """A tensor as it is, the first of a tuple or list, a mapping by its names; on the model's device."""
    if isinstance(batch, Mapping):
        model(**_moved(batch, device))
    elif isinstance(batch, Tensor):
        model(_moved(batch, device))
    elif isinstance(batch, (tuple, list)) and len(batch) > 0:
        model(_moved(batch[0], device))
    else:
        raise InvalidArgumentError(
            f"{who}: expected batches that are tensors, tuples whose first entry is the input, or mappings of keyword "
            f"arguments, got {type(batch).__name__}. Pass call=lambda model, batch: model(...)."
        )


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {name: _moved(item, device) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_moved(item, device) for item in value)
    return value
