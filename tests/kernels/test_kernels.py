"""The six functions of every backend against the reference, on canonical (G, N, C, L)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from steadynorm import reference
from steadynorm.kernels import ACTIVATIONS, Apply

from ..support.setups import (
    EPS,
    SETUPS,
    WALKS,
    Canonical,
    Inputs,
    Setup,
    both_passes,
    check_gradients,
    core,
    cpu,
    draw,
    eager,
    instructions,
    own_statistics,
    reference_backward,
    reference_forward,
    same_bits,
    settings_of,
    threads,
    working_dtype,
)
from ..support.tolerance import as_array, check

BACKENDS = [None, *((name, 1) for name in core.instruction_sets()), (core.instruction_set(), 2)]


@pytest.fixture(params=BACKENDS, ids=["eager", *(f"{name}, {number} threads" for name, number in BACKENDS[1:])])
def backend(request: pytest.FixtureRequest) -> Iterator[Canonical]:
    if request.param is None:
        yield eager
        return
    name, number = request.param
    with threads(number), instructions(name):
        yield cpu


@pytest.fixture(params=[*SETUPS, *WALKS], ids=lambda setup: setup.name)
def inputs(request: pytest.FixtureRequest) -> Inputs:
    return draw(request.param)


def test_moments(backend: Canonical, inputs: Inputs) -> None:
    x, mask = inputs.x, inputs.apply.mask
    ours, theirs = backend.moments(x, mask), own_statistics(x, mask)
    assert torch.equal(ours.count, theirs.count)
    terms, working = x.shape[1] * x.shape[3], working_dtype(x)
    offset = theirs.mean.mean()
    check(ours.mean - offset, theirs.mean - offset, terms=terms, working=working)
    check(ours.var, theirs.var, terms=terms, working=working)


@pytest.mark.parametrize("shared", [False, True], ids=["own statistics", "shared statistics"])
def test_normalize(backend: Canonical, inputs: Inputs, shared: bool) -> None:
    x, _, apply, mean, var = inputs
    groups = range(len(x))
    mean, var = (mean[0], var[0]) if shared else (mean, var)
    y = backend.normalize(x, mean, var, apply)
    rows = [(mean, var) for _ in groups] if shared else list(zip(mean, var, strict=True))
    expected = [
        reference.inference(as_array(x[g]), rows[g][0].numpy(), rows[g][1].numpy(), settings_of(apply, g))
        for g in groups
    ]
    assert y.dtype == x.dtype
    check(y, np.stack(expected))


def test_forward(backend: Canonical, inputs: Inputs) -> None:
    y, moments = backend.forward(inputs.x, inputs.apply)
    assert y.dtype == inputs.x.dtype
    check(y, reference_forward(inputs.x, inputs.apply))
    assert torch.equal(moments.mean, backend.moments(inputs.x, inputs.apply.mask).mean)


def test_backward(backend: Canonical, inputs: Inputs) -> None:
    x, dy, apply, _, _ = inputs
    own = own_statistics(x, apply.mask)
    grads = backend.backward(dy, x, own.mean, own.var, apply, own.count)
    check_gradients(grads, reference_backward(dy, x, apply), x, apply)


def test_backward_through_constant_statistics(backend: Canonical, inputs: Inputs) -> None:
    """Without a count the statistics do not depend on x."""
    x, dy, apply, mean, var = inputs
    expected = [
        reference.inference_backward(as_array(dy[g]), as_array(x[g]), mean[g].numpy(), var[g].numpy(), s)
        for g, s in ((g, settings_of(apply, g)) for g in range(len(x)))
    ]
    check_gradients(backend.backward(dy, x, mean, var, apply), expected, x, apply)


def test_two_steps_are_the_fused_forward(backend: Canonical, inputs: Inputs) -> None:
    moments = backend.moments(inputs.x, inputs.apply.mask)
    y, fused = backend.forward(inputs.x, inputs.apply)
    assert same_bits([y], [backend.normalize(inputs.x, moments.mean, moments.var, inputs.apply)])
    assert torch.equal(fused.m2, moments.m2)


@pytest.mark.parametrize("constant", [False, True], ids=["batch statistics", "constant statistics"])
def test_two_steps_are_the_fused_backward(backend: Canonical, inputs: Inputs, constant: bool) -> None:
    x, dy, apply, mean, var = inputs
    count = None
    if not constant:
        own = backend.moments(x, apply.mask)
        count, mean, var = own.count, own.mean, own.var
    sums = backend.reduce_grad(dy, x, mean, var, apply)
    dx, dresidual = backend.input_grad(dy, x, mean, var, apply, None if constant else sums, count)
    assert same_bits([dx, sums[1], sums[0], dresidual], [*backend.backward(dy, x, mean, var, apply, count)])


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_group_with_nothing_real(backend: Canonical, activation: str | None) -> None:
    """Its moments are 0, its output and gradients are 0 whatever its memory holds; the other groups do not notice."""
    x, dy, apply, _, _ = draw(Setup("", activation, masked=True, residual=True))
    assert apply.mask is not None
    assert apply.residual is not None
    apply.mask[1] = False
    x[1], dy[1], apply.residual[1] = torch.nan, torch.inf, torch.nan
    y, moments = backend.forward(x, apply)
    grads = backend.backward(dy, x, moments.mean, moments.var, apply, moments.count)
    for values in (moments.count, moments.mean, moments.m2, y, *grads):
        assert not values[1].any()
    for group in (0, 2):
        settings = settings_of(apply, group)
        expected = reference.backward(as_array(dy[group]), as_array(x[group]), settings)
        check(y[group], reference.forward(as_array(x[group]), settings)[0])
        check(grads.x[group], expected.x)
        check(grads.weight[group], expected.weight, terms=x.shape[1] * x.shape[3], working=torch.float32)


@pytest.mark.parametrize("setup", [s for s in (*SETUPS, *WALKS) if s.masked], ids=lambda setup: setup.name)
def test_what_the_mask_leaves_out_does_not_matter(backend: Canonical, setup: Setup) -> None:
    """Padding of nan and inf in x, dy and residual: the same bits as padding of zeros."""
    x, dy, apply, _, _ = draw(setup)

    def results(rubbish: float) -> list[Tensor | None]:
        def padded(values: Tensor) -> Tensor:
            assert apply.mask is not None
            return torch.where(apply.mask, values, rubbish)

        residual = None if apply.residual is None else padded(apply.residual)
        return both_passes(backend, padded(x), padded(dy), apply._replace(residual=residual))

    clean = results(0.0)
    assert same_bits(clean, results(torch.nan))
    assert same_bits(clean, results(torch.inf))


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_groups_do_not_notice_each_other(backend: Canonical, activation: str | None) -> None:
    """Three groups at once give what three calls with one group each give."""
    dtype = torch.float64 if backend is eager else torch.float32
    x, dy, apply, _, _ = draw(Setup("", activation, affine="own", masked=True, residual=True, dtype=dtype))
    tolerance = 1e-12 if backend is eager else 1e-6
    together = both_passes(backend, x, dy, apply)
    for g in range(len(x)):
        one = slice(g, g + 1)
        tensors = {field: values[one] for field, values in apply._asdict().items() if isinstance(values, Tensor)}
        alone = both_passes(backend, x[one], dy[one], apply._replace(**tensors))
        torch.testing.assert_close(alone, [t[one] for t in together if t is not None], rtol=tolerance, atol=tolerance)


def test_unknown_activation_has_no_gradient() -> None:
    x, dy, apply, mean, var = draw(Setup(""))
    with pytest.raises(ValueError, match="no activation 'elu'"):
        eager.backward(dy, x, mean, var, apply._replace(activation="elu"))


@pytest.mark.parametrize(("activation", "derivative"), [("relu", 0.0), ("leaky_relu", 0.2)])
def test_gradient_at_the_kink(backend: Canonical, activation: str, derivative: float) -> None:
    """At z = 0 exactly the derivative is the one from the left, as torch takes it."""
    x = torch.zeros(1, 2, 1, 3)
    apply = Apply(None, None, EPS, torch.zeros_like(x), None, activation, 0.2)
    dz = backend.backward(torch.ones_like(x), x, torch.zeros(1, 1), torch.ones(1, 1), apply).residual
    assert torch.equal(dz, torch.full_like(x, derivative))
    settings = reference.Settings(activation=activation, negative_slope=0.2)
    assert reference.activate_derivative(0.0, settings) == derivative


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_kinks_are_torchs(activation: str) -> None:
    """Values and derivatives of the eager kernel and the reference where pieces meet: 0 + residual hits it exactly."""
    z = torch.tensor([-7.0, -3, -1, 0, 1, 3, 6, 7]).reshape(1, 1, 1, 8)
    apply = Apply(None, None, EPS, z, None, activation)
    x, mean, var = torch.zeros_like(z), torch.zeros(1, 1), torch.ones(1, 1)
    leaf = z.clone().requires_grad_()
    theirs = getattr(F, activation)(leaf)
    (slope,) = torch.autograd.grad(theirs.sum(), leaf)
    settings = reference.Settings(activation=activation)
    check(eager.normalize(x, mean, var, apply), reference.activate(as_array(z), settings), theirs)
    found = eager.backward(torch.ones_like(x), x, mean, var, apply).residual
    check(found, reference.activate_derivative(as_array(z), settings), slope)
    exact = reference.activate_derivative(as_array(z), settings)
    assert np.abs(exact - as_array(slope)).max() < 1e-6
