"""torch's own operator, where there is no compiled core: as exact as torch's layer, and all that ours does beside."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import steadynorm as sn
from steadynorm import kernels, reference
from steadynorm.functional import batch_norm
from steadynorm.kernels import ACTIVATIONS, Apply, eager
from steadynorm.kernels.running import Running
from steadynorm.ops.routes import NATIVE, choose

from ..support.cases import CASES, Case, by_name, example
from ..support.cores import without_core
from ..support.tolerance import as_array, check

BFLOAT = torch.bfloat16


@pytest.fixture(autouse=True)
def no_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "compiled", without_core)


def draw(*shape: int, mean: float = 0.0, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + mean


@pytest.fixture(params=[case for case in CASES if 0 not in case.shape], ids=by_name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


class Side(NamedTuple):
    """A layer's tensors as leaves, and running statistics, for one side of a comparison."""

    leaves: list[Tensor]
    mean: Tensor
    var: Tensor

    def given(self, tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """The leaves in the places of `tensors`, None where these are."""
        leaves = iter(self.leaves)
        return [None if tensor is None else next(leaves) for tensor in tensors]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_output_gradients_and_statistics(case: Case, training: bool) -> None:
    """No further from the reference than the tolerance rule allows, with torch's function as the peer."""
    x, weight, bias, residual, dy = example(case)
    tensors, finite = (x, weight, bias, residual), bool(x.isfinite().all())
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    mean = (x.double().mean((0, *range(2, x.dim()))).nan_to_num(0, 0, 0) + 0.1).to(dtype)
    var = (mean.abs() + 0.5).to(dtype)
    ours, theirs = (
        Side([t.detach().clone().requires_grad_() for t in tensors if t is not None], mean.clone(), var.clone())
        for _ in range(2)
    )
    assert choose(x, Apply(weight, bias, 1e-5, residual), Running(ours.mean, ours.var)).route == NATIVE

    leaf, *affine, rest = ours.given(tensors)
    assert leaf is not None
    poisoned = pytest.warns(sn.NonFiniteStatisticsWarning, match="mean or variance is not finite")
    with poisoned if training and not finite else nullcontext():
        settings: dict[str, Any] = {"residual": rest, "activation": case.activation}
        y = batch_norm(leaf, ours.mean, ours.var, *affine, training=training, momentum=0.25, **settings)
    leaf, *affine, rest = theirs.given(tensors)
    assert leaf is not None
    peer = F.batch_norm(leaf, theirs.mean, theirs.var, *affine, training, 0.25)  # type: ignore[arg-type]
    peer = eager.activate(peer if rest is None else peer + rest, Apply(None, None, 0.0, activation=case.activation))

    given = [None if t is None else as_array(t) for t in (weight, bias, residual)]
    asked = reference.Settings(given[0], given[1], residual=given[2], activation=case.activation)
    start = as_array(mean), as_array(var)
    with np.errstate(all="ignore"):
        if training:
            expected, batch = reference.forward(as_array(x), asked)
            gradients = reference.backward(as_array(dy), as_array(x), asked)
            moved = reference.update_running(*start, batch, 0.25)
        else:
            expected, moved = reference.inference(as_array(x), *start, asked), start
            gradients = reference.inference_backward(as_array(dy), as_array(x), *start, asked)
    check(y, expected, peer)
    for found, wanted, peers in ((ours.mean, moved[0], theirs.mean), (ours.var, moved[1], theirs.var)):
        check(found, wanted, peers, terms=case.values_per_channel)
    is_dense = x.is_contiguous() or x.movedim(1, -1).is_contiguous()
    assert y.stride() == x.stride() or not is_dense
    if not finite:
        return
    wanted = (gradients.x, gradients.weight, gradients.bias, gradients.residual)
    found, peers = torch.autograd.grad(y, ours.leaves, dy), torch.autograd.grad(peer, theirs.leaves, dy)
    assert found[0].stride() == x.stride() or not is_dense
    asking = [want for want, tensor in zip(wanted, tensors, strict=True) if tensor is not None]
    for grad, want, theirs_grad, leaf in zip(found, asking, peers, ours.leaves, strict=True):
        assert grad.dtype == leaf.dtype
        check(grad, want, theirs_grad, terms=1 if want.ndim > 1 else case.values_per_channel)


@pytest.mark.parametrize("dims", [1, 2, 3, 4])
def test_channels_last_of_any_shape(dims: int) -> None:
    """Output and gradient have the input's memory order, which torch's operator knows of images and volumes only."""
    x = draw(4, *range(3, 3 + dims), 5).movedim(-1, 1).requires_grad_()
    for training in (True, False):
        y = batch_norm(x, torch.zeros(5), torch.ones(5), training=training, activation="silu")
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
        assert y.stride() == dx.stride() == x.stride()


@pytest.mark.parametrize(
    ("activation", "slope"), [*((name, 0.2) for name in ACTIVATIONS), ("leaky_relu", 0.0), ("leaky_relu", -0.3)]
)
def test_every_activation(activation: str, slope: float) -> None:
    """In place or not, with a residual: what autograd has is what the plain formula gives."""
    x, residual, dy = (2 * draw(16, 3, 5, seed=seed).double() for seed in range(3))
    weight, bias = draw(3, seed=3).double(), draw(3, seed=4).double()

    def gradients(function: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias, residual)]
        y = function(*leaves)
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

    def ours(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        settings: dict[str, Any] = {"activation": activation, "negative_slope": slope, "residual": residual}
        return batch_norm(x, None, None, weight, bias, True, **settings)

    def plain(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return eager.forward(x, Apply(weight, bias, 1e-5, residual, None, activation, slope))[0]

    torch.testing.assert_close(gradients(ours), gradients(plain), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_third_derivative(activation: str | None, training: bool) -> None:
    """torch's own is silently wrong, or refused; a graph of the gradient is ours."""
    statistics = (None, None) if training else (draw(2, seed=7).double(), draw(2, seed=8).double().square() + 0.5)
    weight, bias = draw(2, seed=3).double(), draw(2, seed=4).double()

    def third(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        y = layer(x) ** 3
        for seed in range(2):
            (y,) = torch.autograd.grad((y * draw(6, 2, seed=seed).double()).sum(), x, create_graph=True)
        return torch.autograd.grad((y * draw(6, 2, seed=5).double()).sum(), x)[0]

    def ours(x: Tensor) -> Tensor:
        return batch_norm(x, *statistics, weight, bias, training, activation=activation)

    def plain(x: Tensor) -> Tensor:
        apply = Apply(weight, bias, 1e-5, activation=activation)
        if training:
            return eager.forward(x, apply)[0]
        return eager.normalize(x, statistics[0], statistics[1], apply)  # type: ignore[arg-type]

    x = draw(6, 2).double().requires_grad_()
    torch.testing.assert_close(third(ours, x), third(plain, x), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float32), (torch.float32, BFLOAT), (BFLOAT, BFLOAT)], ids=str)
def test_graph_of_the_gradients_of_16_bit_data(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    """Each gradient has the dtype of what it is of: parameters may be wider than the data, and of two dtypes."""
    x = draw(64, 6).to(BFLOAT)
    weight, bias = (draw(6, seed=2 + k).to(dtype) for k, dtype in enumerate(dtypes))
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = batch_norm(leaves[0], None, None, *leaves[1:], training=True)
    dy = draw(64, 6, seed=1).to(BFLOAT)
    expected = reference.backward(as_array(dy), as_array(x), reference.Settings(as_array(weight), as_array(bias)))
    for create_graph in (False, True):
        found = torch.autograd.grad(y, leaves, dy, create_graph=create_graph, retain_graph=True)
        for leaf, ours, theirs in zip(leaves, found, expected, strict=False):
            assert ours.dtype == leaf.dtype
            check(ours.detach(), theirs, terms=64, working=torch.float32)


@pytest.mark.parametrize("given", ["weight", "bias"])
def test_one_parameter_without_the_other(given: str) -> None:
    x, value = draw(16, 3), draw(3, seed=1)
    both: dict[str, Any] = {given: value}
    y = batch_norm(x, None, None, training=True, **both)
    asked = reference.Settings()._replace(**{given: as_array(value)})
    check(y, reference.forward(as_array(x), asked)[0])


# ---- beside ----


@pytest.mark.parametrize("mapped", ["weight", "bias", "residual"])
def test_vmap_over_what_goes_with_a_tensor(mapped: str) -> None:
    """x itself is ordinary then; running statistics would move once for all."""
    x = draw(8, 3)
    values = draw(2, 8, 3, seed=1) if mapped == "residual" else draw(2, 3, seed=1)

    def one(value: Tensor) -> Tensor:
        weight, bias = (value if mapped == name else None for name in ("weight", "bias"))
        residual = value if mapped == "residual" else None
        return batch_norm(x, None, None, weight, bias, training=True, residual=residual)

    ys = torch.func.vmap(one)(values)
    for y, value in zip(ys, values, strict=True):
        torch.testing.assert_close(y, one(value))


def test_batched_cotangents() -> None:
    x, weight = draw(8, 3).double().requires_grad_(), draw(3, seed=1).double().requires_grad_()
    y = batch_norm(x, None, None, weight, training=True, activation="silu")
    cotangents = draw(4, 8, 3, seed=2).double()
    together = torch.autograd.grad(y, (x, weight), cotangents, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(y, (x, weight), dy, retain_graph=True) for dy in cotangents]
    torch.testing.assert_close(together, tuple(torch.stack(parts) for parts in zip(*alone, strict=True)))


def test_input_is_not_held() -> None:
    """Once its graph is freed, and where hooks pack what is saved, as activation checkpointing does."""
    x = draw(8, 6).requires_grad_() * 1
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        y = batch_norm(x, None, None, training=True)
    there = weakref.ref(x)
    del x
    gc.collect()
    assert there() is None
    y.sum().backward()


def test_residual_and_input_are_left() -> None:
    """What happens in place happens to nothing that the user has."""
    x, residual = draw(8, 3), draw(8, 3, seed=1)
    before = x.clone(), residual.clone()
    for training in (True, False):
        batch_norm(x, torch.zeros(3), torch.ones(3), training=training, residual=residual, activation="relu")
        batch_norm(x, torch.zeros(3), torch.ones(3), training=training, residual=x, activation="tanh")
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])
