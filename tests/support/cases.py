"""The named inputs every implementation is tested on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """An input and a layer for it; activations and residuals are spread over the cases rather than multiplied."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    order: str = "contiguous"
    mean: float = 0.0
    std: float = 1.0
    activation: str | None = None
    residual: bool = False
    affine: bool = True
    change: Callable[[Tensor], None] | None = None

    @property
    def values_per_channel(self) -> int:
        return torch.Size(self.shape).numel() // self.shape[1]


class Example(NamedTuple):
    """Tensors of a case: x, residual and dy of its shape and order, weight and bias (C,)."""

    x: Tensor
    weight: Tensor | None
    bias: Tensor | None
    residual: Tensor | None
    dy: Tensor


def _set_constant(x: Tensor) -> None:
    x[:, 0] = 3.3


def _set_inf(x: Tensor) -> None:
    x[0, 0] = torch.inf


def _set_nan(x: Tensor) -> None:
    x[0, 1] = torch.nan


HALF, BFLOAT, DOUBLE = torch.float16, torch.bfloat16, torch.float64

CASES = [
    Case("dense", (60, 100)),
    Case("dense, relu", (60, 100), activation="relu"),
    Case("dense, wide batch", (4096, 5), activation="sigmoid"),
    Case("dense, transposed", (12, 8), order="transposed", residual=True),
    Case("dense, float64", (9, 4), DOUBLE, activation="gelu", residual=True),
    Case("dense, bfloat16", (64, 6), BFLOAT, activation="tanh"),
    Case("two values a channel", (2, 5), activation="leaky_relu"),
    Case("sequence", (16, 12, 33), activation="silu"),
    Case("sequence, channels last", (6, 5, 11), order="channels last", activation="relu", residual=True),
    Case("sequence, one example", (1, 4, 50)),
    Case("image", (8, 16, 12, 12), activation="relu"),
    Case("image, not affine", (8, 16, 12, 12), affine=False, residual=True),
    Case("image, channels last", (8, 16, 12, 12), order="channels last", activation="relu", residual=True),
    Case("image, odd sizes", (3, 7, 5, 9), activation="gelu"),
    Case("image, one channel", (8, 1, 6, 6), order="channels last", activation="leaky_relu"),
    Case("image, one position", (8, 6, 1, 1), order="channels last"),
    Case("image, slice", (4, 6, 10, 7), order="slice", activation="relu", residual=True),
    Case("image, float64", (4, 3, 6, 6), DOUBLE, order="channels last", activation="silu"),
    Case("image, float16", (8, 5, 7, 7), HALF, activation="relu", residual=True),
    Case("image, float16, large", (8, 5, 7, 7), HALF, mean=1000.0, std=100.0),
    Case("image, bfloat16, channels last", (8, 5, 7, 7), BFLOAT, order="channels last", activation="relu"),
    Case("image, bfloat16, residual", (8, 5, 7, 7), BFLOAT, residual=True),
    Case("large mean", (16, 6, 14, 14), mean=1e4, std=1e-2),
    Case("large mean, channels last", (16, 6, 14, 14), order="channels last", mean=1e4, std=1.0, activation="relu"),
    Case("large mean, float64", (16, 6, 14, 14), DOUBLE, mean=1e8, std=1e-2, activation="tanh"),
    Case("small spread", (16, 6, 14, 14), std=1e-4, activation="sigmoid"),
    Case("constant channel", (8, 3, 5, 5), change=_set_constant),
    Case("constant channel, channels last", (8, 3, 5, 5), order="channels last", change=_set_constant),
    Case("many values", (4, 2, 512, 512), mean=10.0),
    Case("inf", (4, 3, 5, 5), change=_set_inf),
    Case("nan", (4, 3, 5, 5), change=_set_nan, activation="relu"),
    Case("empty batch", (0, 3, 4, 4)),
    Case("empty sequence", (2, 3, 0), activation="relu", residual=True),
    Case("volume", (2, 5, 4, 6, 3), activation="tanh", residual=True),
    Case("volume, channels last", (3, 4, 5, 4, 6), order="channels last", activation="silu"),
    Case("volume, one example", (1, 3, 4, 4, 4), residual=True),
]


def by_name(case: Case) -> str:
    return case.name


def example(case: Case, seed: int = 0) -> Example:
    """The case's tensors, the same for the same seed; values a 16-bit case cannot hold are rounded first."""
    generator = torch.Generator().manual_seed(seed)

    def draw(shape: tuple[int, ...], mean: float = 0.0, std: float = 1.0) -> Tensor:
        return (torch.randn(shape, generator=generator, dtype=DOUBLE) * std + mean).to(case.dtype)

    x = _ordered(draw(case.shape, case.mean, case.std), case.order)
    if case.change is not None:
        case.change(x)
    parameters = torch.float32 if case.dtype in (HALF, BFLOAT) else case.dtype
    weight, bias = (draw((case.shape[1],)).to(parameters) if case.affine else None for _ in range(2))
    residual = _ordered(draw(case.shape), case.order) if case.residual else None
    return Example(x, weight, bias, residual, _ordered(draw(case.shape), case.order))


def _ordered(x: Tensor, order: str) -> Tensor:
    """`x` in another memory order, values unchanged."""
    match order:
        case "channels last":
            return x.movedim(1, -1).contiguous().movedim(-1, 1)
        case "transposed":
            return x.t().contiguous().t()
        case "slice":
            return torch.stack([x, torch.zeros_like(x)], dim=-1).flatten(-2)[..., ::2]
        case _:
            return x
