"""Who is timed: ours, and torch's layer with the epilogue after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import steadynorm as sn

from .cases import ADD_RELU, INFERENCE, LAST, PLAIN, TRAINING, Case

Step = Callable[[], object]
OURS, TORCH, IN_PLACE, COMPILED = "steadynorm", "torch", "torch in place", "torch.compile"
_LAYERS = {2: "BatchNorm1d", 3: "BatchNorm1d", 4: "BatchNorm2d", 5: "BatchNorm3d"}


class Inputs(NamedTuple):
    x: Tensor
    residual: Tensor | None
    dy: Tensor


def inputs(case: Case) -> Inputs:
    """The case's tensors, standard normal, the same for every provider."""
    generator = torch.Generator().manual_seed(0)

    def draw() -> Tensor:
        values = torch.randn(case.shape, generator=generator).to(getattr(torch, case.dtype))
        return values.movedim(1, -1).contiguous().movedim(-1, 1) if case.order == LAST else values

    return Inputs(draw(), draw() if case.epilogue == ADD_RELU else None, draw())


def steps(case: Case, given: Inputs, compiles: bool) -> dict[str, Step]:
    """One call of each provider; torch.compile, which takes seconds a case, only if asked for."""
    kind, channels = _LAYERS[len(case.shape)], case.shape[1]
    ours = getattr(sn, kind)(channels, activation=None if case.epilogue == PLAIN else "relu")
    theirs = _Epilogue(getattr(nn, kind)(channels), case.epilogue, in_place=False)
    in_place = _Epilogue(getattr(nn, kind)(channels), case.epilogue, in_place=True)
    layers = {OURS: ours, TORCH: theirs, IN_PLACE: in_place}
    if compiles:
        torch._dynamo.reset()
        eager = _Epilogue(getattr(nn, kind)(channels), case.epilogue, in_place=False)
        layers[COMPILED] = torch.compile(eager, dynamic=False)  # type: ignore[assignment]
    if case.epilogue == PLAIN:
        del layers[IN_PLACE]
    return {name: _step(case, layer, given) for name, layer in layers.items()}


class _Epilogue(nn.Module):
    def __init__(self, layer: nn.Module, epilogue: str, *, in_place: bool) -> None:
        super().__init__()
        self.layer, self.epilogue, self.in_place = layer, epilogue, in_place

    def forward(self, x: Tensor, *, residual: Tensor | None = None) -> Tensor:
        y = self.layer(x)
        if residual is not None:
            y = y.add_(residual) if self.in_place else y + residual
        return y if self.epilogue == PLAIN else torch.relu_(y) if self.in_place else torch.relu(y)


def _step(case: Case, layer: nn.Module, given: Inputs) -> Step:
    layer.train(case.mode != INFERENCE)
    x, residual, dy = given
    keywords = {} if residual is None else {"residual": residual}
    if case.mode != TRAINING:

        def forward() -> Tensor:
            with torch.no_grad():
                return layer(x, **keywords)

        return forward
    leaves = [t.detach().requires_grad_() for t in (x, residual) if t is not None]
    if residual is not None:
        keywords = {"residual": leaves[1]}
    wanted = (*leaves, *layer.parameters())

    def training() -> tuple[Tensor, ...]:
        return torch.autograd.grad(layer(leaves[0], **keywords), wanted, dy)

    return training
