"""How exact a layer is on data far from 0: its largest errors beside torch's, against the equations in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import steadynorm as sn

from .. import reference
from .cases import FIRST, LAST
from .providers import OURS, TORCH
from .record import Row

SHAPE, MEAN = (32, 64, 112, 112), 1e4


def keys(quick: bool) -> list[dict[str, Any]]:
    """What to measure: standard normal data shifted by a mean; `quick`: a smaller tensor."""
    shape = [4, 8, 28, 28] if quick else list(SHAPE)
    return [{"shape": shape, "order": order, "mean": MEAN} for order in (FIRST, LAST)]


def measure(shape: list[int], order: str, mean: float) -> list[Row]:
    """One row: by provider, the largest absolute error of y in training and of dx, and their largest true values."""
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if order == LAST else torch.contiguous_format
    x, dy = (torch.randn(shape, generator=generator).contiguous(memory_format=layout) for _ in range(2))
    x = (x + mean).requires_grad_()
    layers: dict[str, nn.Module] = {OURS: sn.BatchNorm2d(shape[1]), TORCH: nn.BatchNorm2d(shape[1])}
    found = {}
    for name, layer in layers.items():
        y = layer(x)
        (dx,) = torch.autograd.grad(y, x, dy)
        found[name] = {"y": y.detach(), "dx": dx}
    values = x.detach().double().numpy()
    settings = reference.Settings(np.ones(shape[1]), np.zeros(shape[1]))
    expected = {"y": reference.forward(values, settings)[0]}
    expected["dx"] = reference.backward(dy.double().numpy(), values, settings).x
    errors = {
        name: {tensor: _largest(value, expected[tensor]) for tensor, value in tensors.items()}
        for name, tensors in found.items()
    }
    largest = {name: float(np.abs(value).max()) for name, value in expected.items()}
    return [{"shape": shape, "order": order, "mean": mean, "largest": largest, "errors": errors}]


def _largest(value: Tensor, expected: np.ndarray) -> float:
    return float(np.abs(value.double().numpy() - expected).max())


HEADER = ("mean", "shape", "order", "tensor", "largest value", "torch's largest error", "ours", "times as exact")


def table(rows: list[Row]) -> list[tuple[str, ...]]:
    """Largest errors, tensor by tensor."""
    return [
        (
            *(f"{row['mean']:g}", str(tuple(row["shape"])), row["order"], tensor, f"{row['largest'][tensor]:.2g}"),
            *(f"{theirs:.1e}", f"{ours:.1e}", f"{theirs / ours:,.0f}"),
        )
        for row in rows
        for tensor, ours in row["errors"][OURS].items()
        for theirs in [row["errors"][TORCH][tensor]]
    ]


def largest_errors(rows: list[Row], order: str) -> tuple[float, float] | None:
    """torch's and our largest error of y in an order; None if it was not measured."""
    for row in rows:
        if row["order"] == order:
            return row["errors"][TORCH]["y"], row["errors"][OURS]["y"]
    return None
