"""The compiled core as tests have it: none, or one in plain PyTorch that keeps signs."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from steadynorm.kernels import Apply, eager
from steadynorm.kernels.running import Outcome, Running

SLOPES = ("relu", "relu6", "leaky_relu")
"""Piecewise linear activations."""


def without_core() -> None:
    """Stands for `kernels.compiled` where there is none."""


class PlainCore(ModuleType):
    """What a core promises, by the eager functions; `calls` are the names of what was called."""

    def __init__(self) -> None:
        super().__init__("plain_core")
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(eager, name)

    def takes(self, *tensors: Tensor | None) -> bool:
        return True

    def train(self, x: Tensor, apply: Apply, running: Running) -> tuple[Tensor, bytes, Tensor | None, Outcome]:
        self.calls.append("train")
        y, batch = eager.forward(x, apply)
        statistics = torch.stack([batch.count[0], batch.mean[0], batch.m2[0], batch.var[0]])
        if running.moves and running.mean is not None and running.var is not None:
            for kept, new in ((running.mean, batch.mean[0]), (running.var, batch.var_unbiased[0])):
                kept.lerp_(new.to(kept.dtype), float(running.momentum))
        signs = None
        if apply.residual is not None and apply.activation in SLOPES:
            z = eager.normalize(x, batch.mean, batch.var, apply._replace(activation=None, mask=None))
            signs = (z > 0) & ~((z >= 6) if apply.activation == "relu6" else torch.zeros_like(z, dtype=torch.bool))
            signs = signs.flatten().to(torch.uint8)
        return y, statistics.numpy().tobytes(), signs, Outcome(finite=bool(statistics.isfinite().all()))

    def train_backward(
        self, dy: Tensor, x: Tensor, kept: bytes, apply: Apply, signs: Tensor | None, wants_dx: bool
    ) -> tuple[Tensor | None, ...]:
        self.calls.append("train_backward")
        count, mean, _, var = torch.frombuffer(bytearray(kept), dtype=torch.float64).reshape(4, -1)
        known = None if signs is None else self.unpack_signs(signs, x, apply.mask)
        grads = eager.backward(dy, x, mean, var, apply, count[None], signs=known)
        dweight, dbias = (
            None if values is None else grad[0].to(values.dtype)
            for values, grad in ((apply.weight, grads.weight), (apply.bias, grads.bias))
        )
        return grads.x if wants_dx else None, dweight, dbias, grads.residual

    def unpack_signs(self, signs: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        self.calls.append("unpack_signs")
        return signs.reshape(x.shape).bool()
