"""BatchRenorm against its equations, and beside BatchNorm."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import steadynorm as sn
from steadynorm import reference
from steadynorm.nn.renorm import DMAX, RMAX, Ramp, _BatchRenorm
from steadynorm.reference import Settings

from ..support.cases import CASES, Case, by_name, example
from ..support.peers import gradients, torch_batch_norm
from ..support.related import corrections, renorm_backward, renorm_settings
from ..support.tolerance import check
from ..support.twins import agree, agree_in_state, normal

DOUBLE = torch.float64
FREE: dict[str, Any] = {"rmax": float("inf"), "dmax": float("inf")}
LAYERS: dict[int, Any] = {2: sn.BatchRenorm1d, 3: sn.BatchRenorm1d, 4: sn.BatchRenorm2d, 5: sn.BatchRenorm3d}


def renorm_layer(**settings: Any) -> _BatchRenorm:
    """Three channels in float64; weight, bias and running statistics that are not the initial ones."""
    layer = sn.BatchRenorm2d(3, dtype=DOUBLE, **settings)
    with torch.no_grad():
        for seed, tensor in enumerate((*layer.parameters(), layer.get_buffer("running_mean"))):
            tensor.copy_(normal(3, seed=seed))
        layer.get_buffer("running_var").copy_(torch.tensor([1.0, 9, 30]))
    return layer


def plain_layer(layer: _BatchRenorm) -> sn.BatchNorm2d:
    """BatchNorm2d of the same state."""
    plain = sn.BatchNorm2d(3, momentum=layer.momentum, dtype=DOUBLE, activation=layer.activation)
    plain.load_state_dict(layer.state_dict(), strict=True)
    return plain


@pytest.mark.parametrize("case", CASES, ids=by_name)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::steadynorm.NonFiniteStatisticsWarning")
def test_case(case: Case) -> None:
    """Running statistics from which some channels are clipped: output, gradients and new statistics."""
    data, channels = example(case), case.shape[1]
    layer = LAYERS[len(case.shape)](channels, affine=case.affine, activation=case.activation, rmax=1.5, dmax=0.5)
    layer.to(torch.float32 if case.dtype.itemsize < 4 else case.dtype)
    running = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    spread = torch.linspace(0.2, 3, channels, dtype=DOUBLE)
    running[0].copy_(case.mean + case.std * (spread - 1))
    running[1].copy_((case.std * spread).square())
    if case.affine:
        with torch.no_grad():
            layer.weight.copy_(data.weight)
            layer.bias.copy_(data.bias)
    arrays = [None if t is None else t.double().numpy() for t in (data.weight, data.bias, data.residual)]
    settings = Settings(arrays[0], arrays[1], 1e-5, arrays[2], None, case.activation)
    x64, dy64 = data.x.double().numpy(), data.dy.double().numpy()
    mean, var = (kept.double().numpy().copy() for kept in running)
    batch = reference.statistics(x64)
    r, d = corrections(batch, mean, var, 1.5, 0.5, 1e-5)

    x = data.x.requires_grad_()
    residual = None if data.residual is None else data.residual.requires_grad_()
    y = layer(x, residual=residual)
    grads = gradients(y, data.dy, x, layer.weight, layer.bias, residual)
    affine = renorm_settings(settings, r, d)
    weight, bias = (torch.from_numpy(t).to(running[0]).requires_grad_() for t in (affine.weight, affine.bias))
    theirs_mean, theirs_var = (torch.from_numpy(t).to(running[0]) for t in (mean, var))
    peer = torch_batch_norm(x, theirs_mean, theirs_var, weight, bias, True, residual, case.activation)
    peer_dx, peer_dscale, peer_dbias = torch.autograd.grad(peer, (x, weight, bias), data.dy)
    peer_dweight = peer_dscale * torch.from_numpy(r) + peer_dbias * torch.from_numpy(d)

    assert y.dtype == case.dtype
    check(y, reference.forward(x64, affine)[0], peer)
    values, peers = max(case.values_per_channel, 1), (peer_dx, peer_dweight, peer_dbias, None)
    expected_grads = renorm_backward(dy64, x64, settings, r, d)
    for grad, expected, peer_grad, terms in zip(grads, expected_grads, peers, (1, values, values, 1), strict=True):
        if grad is not None:
            check(grad, expected, peer_grad, terms=terms)
    expected_mean, expected_var = reference.update_running(mean, var, batch, 0.1)
    check(running[0], expected_mean, theirs_mean)
    check(running[1], expected_var, theirs_var)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("bounds", [{"rmax": 1, "dmax": 0}, {}], ids=["1 and 0", "schedule at its start"])
def test_without_a_correction_it_is_batch_norm(bounds: dict[str, Any], training: bool) -> None:
    """The same bits; eval mode is with any bounds."""
    layer = renorm_layer(**(bounds if training else FREE), activation="relu").train(training)
    plain = plain_layer(layer).train(training)
    x = normal(4, 3, 5, 6)
    agree(layer(x), plain(x), rtol=0, atol=0)
    agree_in_state(layer, plain, rtol=0, atol=0)


@given(st.integers(2, 9), st.booleans(), st.integers(0, 2**31))
def test_unclipped_training_is_inference(examples: int, masked: bool, seed: int) -> None:
    """(x - mean) / sd of the running statistics, whatever the batch; those move as BatchNorm's."""
    x = normal(examples, 3, 2, 3, seed=seed)
    mask = torch.rand(examples, 2, 3, generator=torch.Generator().manual_seed(seed)) < 0.7 if masked else None
    if mask is not None:
        mask[0, 0, :2] = True
    layer = renorm_layer(**FREE)
    plain = plain_layer(layer)
    expected = plain.eval()(x, mask=mask)
    agree(layer(x, mask=mask), expected, rtol=1e-10, atol=1e-10)
    plain.train()(x, mask=mask)
    agree_in_state(layer, plain)


@given(st.integers(0, 2**31))
def test_permuting_the_batch(seed: int) -> None:
    x, layer = normal(8, 3, 2, 2, seed=seed), renorm_layer(rmax=1.5, dmax=0.5)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    agree(copy.deepcopy(layer)(x[order]), layer(x)[order])


def test_mask_and_residual() -> None:
    """nan where nothing is real reaches neither output nor gradient."""
    layer = renorm_layer(rmax=1.5, dmax=0.5, activation="silu")
    mean, var = (layer.get_buffer(name).numpy().copy() for name in ("running_mean", "running_var"))
    mask = torch.rand(5, 5, 6, generator=torch.Generator().manual_seed(0)) < 0.6
    x, residual = normal(5, 3, 5, 6), normal(5, 3, 5, 6, seed=1)
    hidden = [torch.where(mask.unsqueeze(1), t, torch.nan).requires_grad_() for t in (x, residual)]
    dy = normal(5, 3, 5, 6, seed=2)
    y = layer(hidden[0], mask=mask, residual=hidden[1])
    grads = torch.autograd.grad(y, (hidden[0], *layer.parameters(), hidden[1]), dy)
    weight, bias = (p.detach().numpy() for p in layer.parameters())
    settings = Settings(weight, bias, 1e-5, residual.numpy(), mask.unsqueeze(1).numpy(), "silu")
    r, d = corrections(reference.statistics(x.numpy(), settings.mask), mean, var, 1.5, 0.5, 1e-5)
    agree(y, torch.from_numpy(reference.forward(x.numpy(), renorm_settings(settings, r, d))[0]))
    for grad, expected in zip(grads, renorm_backward(dy.numpy(), x.numpy(), settings, r, d), strict=True):
        agree(grad, torch.from_numpy(expected), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"bias": False}], ids=str)
def test_derivatives(settings: dict[str, Any]) -> None:
    """Where every channel is clipped, r and d are constants for differences too."""
    layer = sn.BatchRenorm2d(3, dtype=DOUBLE, rmax=1.2, dmax=0.1, **settings)
    before = copy.deepcopy(layer.state_dict())
    x = normal(4, 3, 1, 2).requires_grad_()

    def call(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        layer.load_state_dict({k: v for k, v in before.items() if "running" in k}, strict=False)
        return layer(x).tanh()

    assert torch.autograd.gradcheck(call, (x, *layer.parameters()))
    assert torch.autograd.gradgradcheck(call, (x, *layer.parameters()))


# ---- the schedule ----


def test_the_papers_schedule() -> None:
    """rmax 1 for 5,000 steps, then linearly to 3 at 40,000; dmax 0, then to 5 at 25,000."""
    assert [RMAX(step) for step in (0, 5_000, 22_500, 40_000, 90_000)] == [1, 1, 2, 3, 3]
    assert [DMAX(step) for step in (0, 5_000, 15_000, 25_000, 90_000)] == [0, 0, 2.5, 5, 5]
    steps = torch.tensor([0, 5_000, 22_500, 40_000, 90_000])
    assert RMAX(steps).tolist() == [1, 1, 2, 3, 3]
    assert Ramp(1, 2, 7, 7)(8) == 2


def test_bounds_follow_the_count_of_batches() -> None:
    """A function is given how many batches were seen before this one."""
    steps: list[int] = []
    layer = sn.BatchRenorm1d(3, dtype=DOUBLE, rmax=lambda step: steps.append(step) or 2.0, dmax=Ramp(0, 5, 0, 4))
    expected = sn.BatchRenorm1d(3, dtype=DOUBLE, rmax=2, dmax=0)
    for step in range(4):
        expected.dmax = 5 * step / 4
        x = normal(6, 3, seed=step)
        agree(layer(x), expected(x))
    assert steps == [0, 1, 2, 3]
    layer.eval()(normal(6, 3))
    assert steps == [0, 1, 2, 3]


def test_the_bounds_are_those_of_the_equations() -> None:
    """By hand: batch of mean 6 and sd 2, running mean 0 and sd 1: r = 2, d = 6, clipped to 1.5 and 4."""
    layer = sn.BatchRenorm1d(1, eps=1e-12, dtype=DOUBLE, rmax=1.5, dmax=4)
    y = layer(torch.tensor([[4.0], [8.0]], dtype=DOUBLE))
    np.testing.assert_allclose(y.detach().flatten(), [-1.5 + 4, 1.5 + 4])
    y = renorm_layer(**FREE).double()(torch.full((2, 3, 2, 2), 7.0, dtype=DOUBLE))
    assert y.isfinite().all()
