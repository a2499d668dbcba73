"""What `steadynorm fold` does, apart from the command line."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from ...errors import InvalidArgumentError
from ...loading import build_model, load_object, load_weights_
from . import Folded, fold


def folded(factory: str, checkpoint: Path, shape: str | None, inputs: str | None) -> tuple[bytes, Folded]:
    """The file of the folded model's state dict, and the model.

    Args:
        factory: package.module:name of what makes the model.
        checkpoint: its weights.
        shape: of a random example, such as "1,3,224,224", or
        inputs: package.module:name of example inputs, or of a function that makes them.
    """
    who = "steadynorm fold"
    example = _example(who, shape, inputs)
    model = build_model(who, factory)
    load_weights_(who, model, checkpoint)
    found = fold(model.eval(), example)
    file = io.BytesIO()
    torch.save(found.model.state_dict(), file)
    return file.getvalue(), found


def _example(who: str, shape: str | None, inputs: str | None) -> Any:
    if (shape is None) == (inputs is None):
        raise InvalidArgumentError(
            f"{who}: expected either --example or --example-inputs, got {'none' if shape is None else 'both'}. Give "
            "the shape of a random example, such as --example 1,3,224,224."
        )
    if inputs is not None:
        found = load_object(who, inputs)
        return found() if callable(found) else found
    try:
        sizes = [int(size) for size in str(shape).split(",")]
        return torch.randn(sizes, generator=torch.Generator().manual_seed(0))
    except (ValueError, RuntimeError) as error:
        raise InvalidArgumentError(
            f"{who}: expected a shape such as 1,3,224,224 for --example, got {shape!r} ({error})."
        ) from error
