"""torch.compile and the registered operators on two ranks: one graph, one operator each way, the same results."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import steadynorm as sn

from ..nn.test_compile import Recorder
from ..support.launch import launch
from ..support.twins import agree, normal

FORWARD = torch.ops.steadynorm.sync_batch_norm.default
BACKWARD = torch.ops.steadynorm.sync_batch_norm_backward.default
SIZES = [(2, 4), (5, 3), (0, 6)]
"""Examples of each rank, step by step; they compile at different times, the empty batch alone."""


class Branches(torch.nn.Module):
    """Three layers whose order nothing but the program gives."""

    def __init__(self) -> None:
        super().__init__()
        self.first = sn.SyncBatchNorm(3, activation="relu")
        self.second = sn.SyncBatchNorm(3, single_value="running", bias=False)
        self.third = sn.SyncBatchNorm(3, momentum=None, affine=False)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.first(x, mask=mask) + self.second(2 * x, residual=x) * self.third(x.square())


def step(call: Any, model: torch.nn.Module, size: int) -> list[Tensor]:
    x, mask = normal(size, 3, 4, seed=size).requires_grad_(), normal(size, 4, seed=9) < 4
    y = call(x, mask)
    return [y, *torch.autograd.grad(y.square().sum(), (x, *model.parameters()))]


def compiled_as_plain(rank: int) -> tuple[list[int], list[int]]:
    """How many exchanges each forward and each backward graph has."""
    recorder, model = Recorder(), Branches().double()
    twin = copy.deepcopy(model)
    program = torch.compile(model, fullgraph=True, backend=recorder.backend)
    for sizes in SIZES:
        agree(step(program, model, sizes[rank]), step(twin, twin, sizes[rank]))
    agree(dict(model.state_dict()), dict(twin.state_dict()))
    return recorder.count("fw", "with_effects"), recorder.count("bw", "with_effects")


def compiled_by_inductor(rank: int) -> None:
    """In float32, in train mode, without a gradient, and in eval mode, which exchanges nothing."""
    model = torch.nn.Sequential(torch.nn.Conv1d(3, 3, 1), sn.SyncBatchNorm(3, activation="relu"))
    twin = copy.deepcopy(model)
    program = torch.compile(model, fullgraph=True)
    x = normal(2 + rank, 3, 4, dtype=torch.float32)
    grads = [
        torch.autograd.grad(call(x).square().sum(), list(owner.parameters()))
        for call, owner in ((program, model), (twin, twin))
    ]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-4)  # sums of 16 products, in another order
    with torch.no_grad():
        torch.testing.assert_close(program(x), twin(x))
    torch.testing.assert_close(dict(model.state_dict()), dict(twin.state_dict()))
    if rank == 0:
        model.eval()
        torch.testing.assert_close(program(x), twin.eval()(x))


def one_value(rank: int) -> str:
    """The operator itself looks, as the graph cannot."""
    program = torch.compile(sn.SyncBatchNorm(3), fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError) as info:
        program(torch.randn(rank, 3))
    return str(info.value)


def checked(rank: int) -> None:
    """Schema, autograd and fake kernels, by `torch.library.opcheck`, on both ranks at once."""
    shapes = (4 + rank, 3, 5), (rank, 3, 5)
    statistics = normal(1, 3, seed=3), normal(1, 3, seed=4).square() + 0.1, torch.full((1, 3), 9.0).double()
    plain = None, None, 1e-5, None, None, None, 0.01
    for shape, residual, dtype in zip(shapes, (True, False), (torch.float32, torch.bfloat16), strict=True):
        x, dy, rest = (normal(*shape, seed=seed, dtype=dtype) for seed in (5, 6, 7))
        mask, weight = normal(shape[0], 1, 5, seed=8) < 3, torch.ones(3)
        settings = (weight, weight.neg(), 1e-3, rest, mask, "silu", 0.01) if residual else plain
        torch.library.opcheck(BACKWARD, (dy, x, *statistics, *settings, False, residual, "0", "who"))
        running = (statistics[0][0], statistics[1][0]) if residual else (None, None)
        torch.library.opcheck(FORWARD, (x.requires_grad_(), *settings, *running, "0", "who"))


def on_two(rank: int) -> dict[str, Any]:
    checked(rank)
    return {"exchanges": compiled_as_plain(rank), "one value": one_value(rank)}


def test_compiled() -> None:
    """Three exchanges in each direction, in order, in every graph; the results of the plain layers."""
    for of_rank in launch(on_two, 2):
        forward, backward = of_rank["exchanges"]
        assert len(forward) == len(backward) > 1
        assert set(forward) == set(backward) == {3}
        assert "expected more than 1 value per channel over all ranks" in of_rank["one value"]


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    launch(compiled_by_inductor, 2)
