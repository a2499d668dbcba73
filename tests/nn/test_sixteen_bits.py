"""Layers of models cast to 16 bits: statistics and parameters stay float32."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import steadynorm as sn

from ..support.twins import agree, normal

HALF, BFLOAT = torch.float16, torch.bfloat16
DTYPES = pytest.mark.parametrize("dtype", [HALF, BFLOAT], ids=str)


def state(layer: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in layer.state_dict().items()}


@DTYPES
@pytest.mark.parametrize("how", ["method", "to", "constructor"])
def test_cast(dtype: torch.dtype, how: str) -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 1), sn.BatchNorm2d(4, dtype=dtype if how == "constructor" else None))
    with torch.no_grad():
        model[1].weight.uniform_(1 / 3, 2)
    before = state(model[1])
    parameter = model[1].weight
    model = model.to(dtype) if how != "method" else model.half() if dtype == HALF else model.bfloat16()
    assert model[0].weight.dtype == dtype
    assert model[1].weight is parameter
    agree(state(model[1]), before, rtol=0, atol=0)
    y = model(normal(4, 3, 5, 6, dtype=dtype))
    assert y.dtype == dtype
    y.float().square().sum().backward()
    assert model[1].weight.grad.dtype == torch.float32
    assert model.eval()(normal(4, 3, 5, 6, dtype=dtype)).dtype == dtype


def test_from_float64() -> None:
    layer = sn.BatchNorm2d(3, dtype=torch.float64).half()
    assert {t.dtype for t in layer.state_dict().values()} == {torch.float32, torch.int64}
    assert layer(normal(4, 3, 5, 6, dtype=HALF)).dtype == HALF
    assert sn.BatchNorm2d(3).bfloat16().double().weight.dtype == torch.float64


@DTYPES
@pytest.mark.parametrize("assign", [False, True])
def test_state_dicts_of_torch_s_cast_layer(dtype: torch.dtype, assign: bool) -> None:
    theirs, ours = nn.BatchNorm2d(3).to(dtype), sn.BatchNorm2d(3)
    with torch.no_grad():
        theirs.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    given = theirs.state_dict()
    ours.load_state_dict(given, assign=assign)
    assert all(given[name].dtype == dtype for name in ("weight", "running_mean"))
    assert ours.running_mean is not None and theirs.running_mean is not None
    assert ours.running_mean.dtype == ours.weight.dtype == torch.float32
    agree(ours.running_mean, theirs.running_mean.float(), rtol=0, atol=0)
    theirs.load_state_dict(ours.state_dict())
    agree(theirs.state_dict(), given, rtol=0, atol=0)


def test_statistics_that_torch_s_layer_forgets() -> None:
    """What this is about: in bfloat16, with momentum 1e-3, torch's running variance never leaves 1.000."""
    theirs, ours = nn.BatchNorm2d(3, momentum=1e-3).bfloat16(), sn.BatchNorm2d(3, momentum=1e-3).bfloat16()
    exact = sn.BatchNorm2d(3, momentum=1e-3, dtype=torch.float64)
    for seed in range(600):
        x = (normal(4, 3, 4, 4, seed=seed) - 2).to(BFLOAT) * 0.25
        theirs(x), ours(x), exact(x.double())
    assert theirs.running_var is not None and ours.running_var is not None and exact.running_var is not None
    assert torch.equal(theirs.running_var.float(), torch.ones(3))
    agree(ours.running_var.double(), exact.running_var, rtol=1e-5, atol=0)
    assert ours.running_var.max() < 0.9


def test_copies_and_moves() -> None:
    layer = copy.deepcopy(sn.BatchNorm1d(3).half())
    assert layer.weight.dtype == torch.float32
    meta = sn.BatchNorm1d(3, device="meta", dtype=BFLOAT).to_empty(device="cpu")
    assert {t.dtype for t in meta.state_dict().values()} == {torch.float32, torch.int64}
