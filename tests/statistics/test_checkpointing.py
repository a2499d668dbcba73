"""Activation checkpointing computes a forward twice; running statistics move once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import steadynorm as sn

from ..support.twins import agree, normal

KINDS = pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])


def build(library: object, momentum: float | None = 0.1) -> Any:
    norm = library.BatchNorm2d(3, momentum=momentum)  # type: ignore[attr-defined]
    return nn.Sequential(norm, nn.Sigmoid()).double()


def train(model: nn.Module, x: torch.Tensor, reentrant: bool | None) -> list[torch.Tensor]:
    x = x.clone().requires_grad_()
    y = model(x) if reentrant is None else checkpoint(model, x, use_reentrant=reentrant)
    y.square().sum().backward()
    return [x.grad, *(p.grad for p in model.parameters())]  # type: ignore[list-item]


@KINDS
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (32, 3, 40, 41)], ids=["small", "large"])
def test_statistics_move_once(reentrant: bool, momentum: float | None, shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    plain, checked = build(sn, momentum), build(sn, momentum)
    gradients = train(plain, x, None)
    agree(train(checked, x, reentrant), gradients)
    agree(dict(checked.named_buffers()), dict(plain.named_buffers()), rtol=0, atol=0)


@KINDS
def test_torch_s_own_layer_moves_twice(reentrant: bool) -> None:
    """What this is about: torch's running mean is 1.9 times ours."""
    x = normal(4, 3, 5, 6)
    ours, theirs = build(sn), build(nn)
    for model in (ours, theirs):
        train(model, x, reentrant)
    agree(theirs[0].running_mean / ours[0].running_mean, torch.full((3,), 1.9, dtype=torch.float64))


@KINDS
def test_one_value_a_channel(reentrant: bool) -> None:
    """The recomputation normalizes by the running statistics too, where the forward did."""
    model: Any = nn.Sequential(sn.BatchNorm1d(3, single_value="running"), nn.Sigmoid()).double()
    agree(train(model, normal(1, 3), reentrant)[0], train(model, normal(1, 3), None)[0])
    assert model[0].num_batches_tracked == 0
