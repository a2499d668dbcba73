"""How far results are from the equations in float64."""

from __future__ import annotations

import numpy as np
import torch

from .. import reference
from .cases import INFERENCE, PLAIN, TRAINING, Case
from .providers import Inputs, Step


def largest(case: Case, given: Inputs, steps: dict[str, Step]) -> dict[str, dict[str, float]]:
    """By provider, the largest error of "y", or of "dx" where there is a backward pass, over its largest value."""
    settings = reference.Settings(
        np.ones(case.shape[1]),
        np.zeros(case.shape[1]),
        residual=None if given.residual is None else given.residual.double().numpy(),
        activation=None if case.epilogue == PLAIN else "relu",
    )
    x = given.x.double().numpy()
    if case.mode == TRAINING:
        name, expected = "dx", reference.backward(given.dy.double().numpy(), x, settings).x
    elif case.mode == INFERENCE:
        mean, var = np.zeros(case.shape[1]), np.ones(case.shape[1])
        name, expected = "y", reference.inference(x, mean, var, settings)
    else:
        name, expected = "y", reference.forward(x, settings)[0]
    return {provider: {name: _error(step(), expected)} for provider, step in steps.items()}


def _error(result: object, expected: np.ndarray) -> float:
    tensor = result[0] if isinstance(result, tuple) else result
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"expected a tensor, got {type(result).__name__}")
    return float(np.abs(tensor.detach().double().numpy() - expected).max() / np.abs(expected).max())
