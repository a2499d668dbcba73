"""Running statistics that torch's own operator moves, looked at or on a device that is never waited for."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import steadynorm as sn
from steadynorm import kernels, reference
from steadynorm.functional import batch_norm
from steadynorm.kernels import running
from steadynorm.ops import native

from ..support.cores import without_core
from ..support.tolerance import as_array, check
from .test_native import BFLOAT, draw


@pytest.fixture(autouse=True)
def no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "compiled", without_core)


@pytest.fixture(params=[True, False], ids=["looked at", "accelerator"])
def looked_at(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Statistics that may be looked at, and those that would have to be waited for."""
    if not request.param:
        for place in (running, native):
            monkeypatch.setattr(place, "readable", lambda _: False)
    yield request.param


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, BFLOAT])
@pytest.mark.parametrize("momentum", [0.25, torch.tensor(0.25), torch.tensor(0.25, dtype=torch.float64)], ids=str)
@pytest.mark.usefixtures("looked_at")
def test_running_statistics_of_any_dtype(dtype: torch.dtype, momentum: float | Tensor) -> None:
    x = (draw(16, 6, 5) * 2 + 1).to(dtype)
    kept = torch.zeros(6, dtype=dtype), torch.ones(6, dtype=dtype)
    batch_norm(x, *kept, training=True, momentum=momentum)
    expected = reference.update_running([0.0] * 6, [1.0] * 6, reference.statistics(as_array(x)), 0.25)
    for ours, theirs in zip(kept, expected, strict=True):
        check(ours, theirs, terms=80)


def test_guarded_statistics(looked_at: bool) -> None:
    """They stay where a moment is not finite; what would have to be waited for is not counted."""
    layer, x = sn.BatchNorm1d(3), draw(8, 3)
    bad = x.clone()
    bad[2, 1] = torch.inf
    with sn.guard_statistics(layer) as guard:
        layer(x)
        before = [t.clone() for t in (layer.get_buffer("running_mean"), layer.get_buffer("running_var"))]
        if looked_at:
            with pytest.warns(sn.NonFiniteStatisticsWarning, match="kept out of the running statistics"):
                layer(bad)
        else:
            layer(bad)
    assert torch.equal(before[0], layer.get_buffer("running_mean"))
    assert torch.equal(before[1], layer.get_buffer("running_var"))
    assert not torch.equal(before[0], torch.zeros(3))
    assert guard.kept_out == ({"": 1} if looked_at else {})


@pytest.mark.usefixtures("looked_at")
def test_plain_average_over_batches() -> None:
    layer = sn.BatchNorm1d(3, momentum=None)
    batches = [draw(8, 3, seed=seed) for seed in range(3)]
    for batch in batches:
        layer(batch)
    check(layer.get_buffer("running_mean"), np.mean([as_array(b).mean(0) for b in batches], 0), terms=8)


@pytest.mark.parametrize("what", ["data", "statistics"])
@pytest.mark.usefixtures("looked_at")
def test_inference_tensors_move_nothing(what: str) -> None:
    """torch refuses to save the one and to write to the other; then neither statistic has moved."""
    with torch.inference_mode():
        given = draw(8, 3) if what == "data" else torch.zeros(3)
    x, mean, var = (given, torch.zeros(3), torch.ones(3)) if what == "data" else (draw(8, 3), given, torch.ones(3))
    with pytest.raises(RuntimeError, match=r"[Ii]nference [Tt]ensor"):
        batch_norm(x, mean, var, torch.ones(3).requires_grad_(), training=True)
    assert torch.equal(mean, torch.zeros(3))
    assert torch.equal(var, torch.ones(3))


def test_statistics_that_move_between_forward_and_backward() -> None:
    """An eval-mode forward's gradient is by the statistics that it saw."""
    layer, x = sn.BatchNorm1d(3).eval(), draw(8, 3).requires_grad_()
    expected = torch.autograd.grad(layer(x).square().sum(), x)[0]
    y = layer(x).square().sum()
    layer.train()(draw(8, 3, seed=1) * 3)
    assert torch.equal(torch.autograd.grad(y, x)[0], expected)


@pytest.mark.usefixtures("looked_at")
def test_checkpointing() -> None:
    """A repeated forward moves nothing, and keeps as many tensors for the gradient, which torch insists on."""
    layer, x = sn.BatchNorm1d(3, activation="relu"), draw(8, 3).requires_grad_()
    twin = copy.deepcopy(layer)
    found = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).square().sum(), x)
    assert torch.equal(found[0], torch.autograd.grad(twin(x).square().sum(), x)[0])
    assert all(torch.equal(a, b) for a, b in zip(layer.buffers(), twin.buffers(), strict=True))
