"""Derivatives beyond the first on three ranks, one of them empty: those of one process on all data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import steadynorm as sn
from steadynorm.nn.batchnorm import _BatchNorm

from ..support.launch import launch
from ..support.twins import agree, normal

SIZES = (2, 0, 4)
PARTS = (slice(0, 2), slice(2, 2), slice(2, 6))
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "silu, residual": {"activation": "silu"},
    "gelu, mask": {"activation": "gelu"},
    "not affine": {"affine": False},
    "eps": {"eps": 0.5, "activation": "tanh"},
}
Step = Callable[[_BatchNorm, slice], list[Tensor]]


def data(name: str, part: slice) -> dict[str, Tensor | None]:
    mask = normal(6, 5, seed=4)[part] < 3
    residual = normal(6, 3, 5, seed=5)[part]
    return {"mask": mask if "mask" in name else None, "residual": residual if "residual" in name else None}


def second(layer: _BatchNorm, name: str, part: slice) -> list[Tensor]:
    """Gradients of a penalty on dx, a part of all ranks' penalty, and of dweight, which is a sum over ranks."""
    x = normal(6, 3, 5)[part].requires_grad_()
    dy = normal(6, 3, 5, seed=1)[part].requires_grad_()
    given = data(name, part)
    residuals = [t.requires_grad_() for t in (given["residual"],) if t is not None]
    y = layer(x, **given)
    inputs = [x, *layer.parameters(), *residuals]
    dx, *rest = torch.autograd.grad(y, inputs, dy, create_graph=True)
    penalty = (dx.square() * normal(6, 3, 5, seed=2)[part]).sum() + sum((r * r.shape[-1]).sum() for r in rest)
    wanted = [x, dy, *inputs[1:]]
    found = torch.autograd.grad(penalty, wanted, allow_unused=True, materialize_grads=True)
    return [dx.detach(), *found]


def third(layer: _BatchNorm, name: str, part: slice) -> list[Tensor]:
    """The gradient of a penalty on the gradient of a penalty on dx."""
    x = normal(6, 3, 5)[part].requires_grad_()
    loss = (layer(x, **data(name, part)) * normal(6, 3, 5, seed=1)[part]).sum()
    for seed in (2, 3):
        (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
        loss = (gradient * normal(6, 3, 5, seed=seed)[part]).sum()
    return list(torch.autograd.grad(loss, x))


def functional(layer: _BatchNorm, name: str, part: slice) -> list[Tensor]:
    """torch.func.grad of the loss, and of its gradient."""

    def loss(x: Tensor) -> Tensor:
        return (layer(x, **data(name, part)) * normal(6, 3, 5, seed=1)[part]).sum()

    def penalty(x: Tensor) -> Tensor:
        return torch.func.grad(loss)(x).square().sum()

    x = normal(6, 3, 5)[part]
    return [torch.func.grad(loss)(x), torch.func.grad(penalty)(x)]


STEPS = {"second": second, "third": third, "functional": functional}


def layer_of(kind: type[_BatchNorm], name: str) -> _BatchNorm:
    layer = kind(3, dtype=torch.float64, track_running_stats=False, **SETTINGS[name])
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(3, seed=20 + seed))
    return layer


def on_rank(rank: int) -> dict[str, list[Tensor]]:
    found = {}
    for name in SETTINGS:
        for kind, step in STEPS.items():
            found[f"{kind}: {name}"] = step(layer_of(sn.SyncBatchNorm, name), name, PARTS[rank])
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, list[Tensor]]]:
    return launch(on_rank, 3)


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("name", SETTINGS)
def test_as_one_process(kind: str, name: str, found: list[dict[str, list[Tensor]]]) -> None:
    """What has a value for each example is cut to ranks; what has one for each channel, summed over them."""
    whole = STEPS[kind](layer_of(sn.BatchNorm1d, name), name, slice(0, 6))
    assert any((part != 0).any() for part in whole)
    of_ranks = zip(*(of_rank[f"{kind}: {name}"] for of_rank in found), strict=True)
    for parts, together in zip(of_ranks, whole, strict=True):
        joined = torch.cat(parts) if together.dim() == 3 else torch.stack(parts).sum(0)
        agree(joined, together, rtol=1e-10, atol=1e-10)
