"""The six functions in plain PyTorch against the reference, on canonical (G, N, C, L)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from steadynorm import reference
from steadynorm.kernels import ACTIVATIONS, Apply, eager
from steadynorm.moments import Moments

from ..support.tolerance import as_array, check

DOUBLE = torch.float64
GROUPS, EXAMPLES, CHANNELS, POSITIONS = 3, 4, 5, 6
EPS = 1e-3


@dataclass(frozen=True)
class Setup:
    """What surrounds the normalized value; `affine` is "shared" (C,), "own" (G, C) or None."""

    name: str
    activation: str | None = None
    affine: str | None = "shared"
    masked: bool = False
    residual: bool = False
    channels_last: bool = False
    dtype: torch.dtype = torch.float32
    mean: float = 0.0


SETUPS = [
    Setup("plain", affine=None),
    Setup("affine", affine="own", channels_last=True),
    Setup("mask", masked=True, affine=None),
    Setup("mask, channels last", masked=True, channels_last=True, residual=True, activation="relu"),
    Setup("relu", "relu", residual=True),
    Setup("relu, own, mask", "relu", affine="own", masked=True),
    Setup("leaky_relu", "leaky_relu", residual=True, masked=True),
    Setup("silu", "silu", affine="own", residual=True),
    Setup("gelu", "gelu", masked=True, affine="own", channels_last=True),
    Setup("sigmoid", "sigmoid", affine="own", residual=True),
    Setup("tanh", "tanh", residual=True, masked=True, affine="own"),
    Setup("float64", "silu", affine="own", residual=True, masked=True, dtype=DOUBLE),
    Setup("float64, channels last", "gelu", residual=True, channels_last=True, dtype=DOUBLE),
    Setup("bfloat16", "relu", residual=True, masked=True, dtype=torch.bfloat16),
    Setup("float16", "tanh", affine="own", channels_last=True, dtype=torch.float16),
    Setup("large mean", "relu", mean=1e4, masked=True, affine="own"),
]


class Inputs(NamedTuple):
    x: Tensor
    dy: Tensor
    apply: Apply
    mean: Tensor
    var: Tensor


@pytest.fixture(params=SETUPS, ids=lambda setup: setup.name)
def inputs(request: pytest.FixtureRequest) -> Inputs:
    return draw(request.param)


def draw(setup: Setup) -> Inputs:
    """Tensors of a setup; `mean` and `var` are statistics that are not the data's own."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = setup.dtype) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=DOUBLE).to(dtype)

    def data(offset: float = 0.0) -> Tensor:
        values = (normal(GROUPS, EXAMPLES, CHANNELS, POSITIONS, dtype=DOUBLE) + offset).to(setup.dtype)
        return values.transpose(2, 3).contiguous().transpose(2, 3) if setup.channels_last else values

    parameter = torch.float32 if setup.dtype.itemsize < 4 else setup.dtype
    own = (GROUPS, CHANNELS) if setup.affine == "own" else (CHANNELS,)
    weight, bias = (normal(*own, dtype=parameter) if setup.affine else None for _ in range(2))
    mask = normal(GROUPS, EXAMPLES, 1, POSITIONS) < 0.4 if setup.masked else None
    residual = data() if setup.residual else None
    apply = Apply(weight, bias, EPS, residual, mask, setup.activation, 0.2)
    mean = normal(GROUPS, CHANNELS, dtype=DOUBLE) + setup.mean
    return Inputs(data(setup.mean), data(), apply, mean, normal(GROUPS, CHANNELS, dtype=DOUBLE).square() + 0.1)


def settings_of(apply: Apply, group: int) -> reference.Settings:
    """The reference's settings for one group."""

    def own(values: Tensor | None) -> NDArray[np.float64] | None:
        return None if values is None else as_array(values if values.dim() == 1 else values[group])

    residual = None if apply.residual is None else as_array(apply.residual[group])
    mask = None if apply.mask is None else apply.mask[group].numpy()
    return reference.Settings(
        own(apply.weight), own(apply.bias), apply.eps, residual, mask, apply.activation, apply.negative_slope
    )


def own_statistics(x: Tensor, mask: Tensor | None) -> Moments:
    """The reference's statistics of each group, as the tensors a kernel takes."""
    masks = [None] * GROUPS if mask is None else [m.numpy() for m in mask]
    found = [reference.statistics(as_array(group), m) for group, m in zip(x, masks, strict=True)]
    count, mean, var = (torch.from_numpy(np.stack([getattr(f, k) for f in found])) for k in ("count", "mean", "var"))
    return Moments(count, mean, var * count)


def check_gradients(grads: tuple[Tensor, ...], expected: list[reference.Gradients], x: Tensor) -> None:
    """dx, dweight, dbias, dresidual of all groups; sums over a channel are taken in x's working dtype."""
    working = torch.float32 if x.dtype.itemsize < 4 else x.dtype
    terms = (1, EXAMPLES * POSITIONS, EXAMPLES * POSITIONS, 1)
    for grad, values, number in zip(grads, zip(*expected, strict=True), terms, strict=True):
        check(grad, np.stack(values), terms=number, working=working)


def test_moments(inputs: Inputs) -> None:
    ours, theirs = eager.moments(inputs.x, inputs.apply.mask), own_statistics(inputs.x, inputs.apply.mask)
    assert torch.equal(ours.count, theirs.count)
    terms, working = EXAMPLES * POSITIONS, torch.float32 if inputs.x.dtype.itemsize < 4 else inputs.x.dtype
    offset = theirs.mean.mean()
    check(ours.mean - offset, theirs.mean - offset, terms=terms, working=working)
    check(ours.var, theirs.var, terms=terms, working=working)


@pytest.mark.parametrize("shared", [False, True], ids=["own statistics", "shared statistics"])
def test_normalize(inputs: Inputs, shared: bool) -> None:
    x, _, apply, mean, var = inputs
    mean, var = (mean[0], var[0]) if shared else (mean, var)
    y = eager.normalize(x, mean, var, apply)
    rows = [(mean, var)] * GROUPS if shared else list(zip(mean, var, strict=True))
    settings = [settings_of(apply, group) for group in range(GROUPS)]
    expected = [
        reference.inference(as_array(group), m.numpy(), v.numpy(), s)
        for group, (m, v), s in zip(x, rows, settings, strict=True)
    ]
    assert y.dtype == x.dtype
    check(y, np.stack(expected))


def test_forward(inputs: Inputs) -> None:
    y, moments = eager.forward(inputs.x, inputs.apply)
    expected = [reference.forward(as_array(inputs.x[g]), settings_of(inputs.apply, g))[0] for g in range(GROUPS)]
    assert y.dtype == inputs.x.dtype
    check(y, np.stack(expected))
    assert torch.equal(moments.mean, eager.moments(inputs.x, inputs.apply.mask).mean)


def test_backward(inputs: Inputs) -> None:
    x, dy, apply, _, _ = inputs
    own = own_statistics(x, apply.mask)
    grads = eager.backward(dy, x, own.mean, own.var, apply, own.count)
    expected = [reference.backward(as_array(dy[g]), as_array(x[g]), settings_of(apply, g)) for g in range(GROUPS)]
    check_gradients(grads, expected, x)


def test_backward_through_constant_statistics(inputs: Inputs) -> None:
    """Without a count the statistics do not depend on x."""
    x, dy, apply, mean, var = inputs
    expected = [
        reference.inference_backward(as_array(dy[g]), as_array(x[g]), mean[g].numpy(), var[g].numpy(), s)
        for g, s in ((g, settings_of(apply, g)) for g in range(GROUPS))
    ]
    check_gradients(eager.backward(dy, x, mean, var, apply), expected, x)


def test_two_steps_are_the_fused_forward(inputs: Inputs) -> None:
    moments = eager.moments(inputs.x, inputs.apply.mask)
    y, fused = eager.forward(inputs.x, inputs.apply)
    assert torch.equal(y, eager.normalize(inputs.x, moments.mean, moments.var, inputs.apply))
    assert torch.equal(fused.m2, moments.m2)


@pytest.mark.parametrize("constant", [False, True], ids=["batch statistics", "constant statistics"])
def test_two_steps_are_the_fused_backward(inputs: Inputs, constant: bool) -> None:
    x, dy, apply, mean, var = inputs
    count = None
    if not constant:
        own = eager.moments(x, apply.mask)
        count, mean, var = own.count, own.mean, own.var
    sums = eager.reduce_grad(dy, x, mean, var, apply)
    dx, dresidual = eager.input_grad(dy, x, mean, var, apply, None if constant else sums, count)
    grads = eager.backward(dy, x, mean, var, apply, count)
    for ours, fused in zip((dx, sums[1], sums[0], dresidual), grads, strict=True):
        assert torch.equal(ours, fused)


@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
def test_group_with_nothing_real(activation: str | None) -> None:
    """Its moments are 0, its output and gradients are 0 whatever its memory holds; the other groups do not notice."""
    x, dy, apply, _, _ = draw(Setup("", activation, masked=True, residual=True))
    assert apply.mask is not None
    assert apply.residual is not None
    apply.mask[1] = False
    x[1], dy[1], apply.residual[1] = torch.nan, torch.inf, torch.nan
    y, moments = eager.forward(x, apply)
    grads = eager.backward(dy, x, moments.mean, moments.var, apply, moments.count)
    for values in (moments.count, moments.mean, moments.m2, y, *grads):
        assert not values[1].any()
    for group in (0, 2):
        settings = settings_of(apply, group)
        expected = reference.backward(as_array(dy[group]), as_array(x[group]), settings)
        check(y[group], reference.forward(as_array(x[group]), settings)[0])
        check(grads.x[group], expected.x)
        check(grads.weight[group], expected.weight, terms=EXAMPLES * POSITIONS, working=torch.float32)


def test_what_the_mask_leaves_out_does_not_matter() -> None:
    """Padding of nan and inf in x, dy and residual: the same bits as padding of zeros."""
    x, dy, apply, _, _ = draw(Setup("", "silu", masked=True, residual=True))
    assert apply.mask is not None
    assert apply.residual is not None
    results = []
    for rubbish in (0.0, torch.nan, torch.inf):
        data, slope, residual = (torch.where(apply.mask, t, rubbish) for t in (x, dy, apply.residual))
        padded = apply._replace(residual=residual)
        y, moments = eager.forward(data, padded)
        grads = eager.backward(slope, data, moments.mean, moments.var, padded, moments.count)
        results.append((y, moments.mean, moments.m2, *grads))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
def test_groups_do_not_notice_each_other(activation: str | None) -> None:
    """Three groups at once give what three calls with one group each give."""
    x, dy, apply, _, _ = draw(Setup("", activation, affine="own", masked=True, residual=True, dtype=DOUBLE))
    y, moments = eager.forward(x, apply)
    grads = eager.backward(dy, x, moments.mean, moments.var, apply, moments.count)
    for g in range(GROUPS):
        one = slice(g, g + 1)
        tensors = {field: values[one] for field, values in apply._asdict().items() if isinstance(values, Tensor)}
        alone = apply._replace(**tensors)
        y_alone, own = eager.forward(x[one], alone)
        torch.testing.assert_close(y_alone, y[one], rtol=1e-13, atol=1e-13)
        for ours, together in zip(
            eager.backward(dy[one], x[one], own.mean, own.var, alone, own.count), grads, strict=True
        ):
            torch.testing.assert_close(ours, together[one], rtol=1e-12, atol=1e-13)


def test_unknown_activation_has_no_gradient() -> None:
    x, dy, apply, mean, var = draw(Setup(""))
    with pytest.raises(ValueError, match="no activation 'elu'"):
        eager.backward(dy, x, mean, var, apply._replace(activation="elu"))


@pytest.mark.parametrize(("activation", "derivative"), [("relu", 0.0), ("leaky_relu", 0.2)])
def test_gradient_at_the_kink(activation: str, derivative: float) -> None:
    """At z = 0 exactly the derivative is the one from the left, as torch takes it."""
    x = torch.zeros(1, 2, 1, 3)
    apply = Apply(None, None, EPS, None, None, activation, 0.2)
    dz = eager.backward(torch.ones_like(x), x, torch.zeros(1, 1), torch.ones(1, 1), apply).residual
    assert torch.equal(dz, torch.full_like(x, derivative))
    assert (
        reference.activate_derivative(0.0, reference.Settings(activation=activation, negative_slope=0.2)) == derivative
    )
