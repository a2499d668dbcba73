"""A training step by the compiled core, at every size; and signs that are kept instead of the residual."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

import steadynorm as sn
from steadynorm import kernels, reference
from steadynorm.functional import batch_norm
from steadynorm.kernels import Apply
from steadynorm.kernels.running import Running
from steadynorm.ops.routes import STEP, choose

from ..support.cores import SLOPES, PlainCore, without_core
from ..support.tolerance import as_array, check

SHAPE = (16, 6, 37, 41)
SIZES = pytest.mark.parametrize("shape", [SHAPE, (8, 6, 5, 5)], ids=["large", "small"])
BFLOAT = torch.bfloat16


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "case", [(1e4, 1.0), (-100.0, 1.0), (0.0, 1e-4)], ids=["far mean", "far below 0", "small spread"]
)
@pytest.mark.parametrize("shape", [(60, 3), (60, 3, 700)], ids=["small", "large"])
def test_as_exact_at_every_size(shape: tuple[int, ...], case: tuple[float, float]) -> None:
    """Output, gradient and running statistics; torch's operator would lose digits."""
    mean, std = case
    x, dy = draw(*shape) * std + mean, draw(*shape, seed=1)
    running = torch.zeros(3), torch.ones(3)
    assert choose(x, Apply(None, None, 1e-5), Running(*running)).route == STEP
    leaf = x.clone().requires_grad_()
    y = batch_norm(leaf, *running, training=True, momentum=0.25)
    expected, batch = reference.forward(as_array(x))
    check(y, expected)
    (dx,) = torch.autograd.grad(y, leaf, dy)
    check(dx, reference.backward(as_array(dy), as_array(x)).x)
    for ours, theirs in zip(running, reference.update_running([0.0] * 3, [1.0] * 3, batch, 0.25), strict=True):
        check(ours, theirs, terms=x.numel() // 3)


@SIZES
@pytest.mark.parametrize("activation", [None, "relu"])
def test_result_gradients_and_running_statistics(shape: tuple[int, ...], activation: str | None) -> None:
    x, dy = draw(*shape) + 2, draw(*shape, seed=1)
    weight, bias = draw(6, seed=2).requires_grad_(), draw(6, seed=3).requires_grad_()
    running = torch.zeros(6), torch.ones(6)
    leaf, terms = x.clone().requires_grad_(), x.numel() // 6
    y = batch_norm(leaf, *running, weight, bias, training=True, momentum=0.25, activation=activation)
    settings = reference.Settings(as_array(weight), as_array(bias), activation=activation)
    expected, batch = reference.forward(as_array(x), settings)
    check(y, expected)
    gradients = reference.backward(as_array(dy), as_array(x), settings)
    for ours, theirs in zip(torch.autograd.grad(y, (leaf, weight, bias), dy), gradients, strict=False):
        check(ours, theirs, terms=terms)
    for ours, theirs in zip(running, reference.update_running([0.0] * 6, [1.0] * 6, batch, 0.25), strict=True):
        check(ours, theirs)


@pytest.mark.parametrize("residual", [False, True])
def test_momentum_as_a_tensor_is_a_number(residual: bool) -> None:
    x, found = draw(8, 6), []
    for momentum in (0.25, torch.tensor(0.25)):
        running = torch.zeros(6), torch.ones(6)
        batch_norm(x, *running, training=True, momentum=momentum, residual=x if residual else None)
        found.append(torch.stack(running))
    assert torch.equal(*found)


# ---- signs ----


def every_derivative(x: Tensor, dy: Tensor, apply: Apply) -> list[Tensor]:
    """y, the gradients, and gradients of a function of these."""
    leaves = [t.clone().requires_grad_() for t in (x, apply.weight, apply.bias, apply.residual) if t is not None]
    leaf, weight, bias, residual = leaves
    settings = {"residual": residual, "activation": apply.activation, "negative_slope": apply.negative_slope}
    y = batch_norm(leaf, None, None, weight, bias, True, eps=apply.eps, mask=apply.mask, **settings)
    first = torch.autograd.grad(y, leaves, dy, retain_graph=True)
    graph = torch.autograd.grad(y, leaves, dy, create_graph=True)
    second = torch.autograd.grad(
        torch.cat([g.flatten() for g in graph[:3]]).pow(3).sum(), leaves[:2], create_graph=True
    )
    third = torch.autograd.grad(torch.cat([g.flatten() for g in second]).square().sum(), leaf)
    return [y, *first, *graph, *second, *third]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("activation", SLOPES)
def test_signs_serve_as_well_as_the_residual(activation: str, masked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Derivatives of every order, from a core that keeps signs, are those of the formula that has the residual."""
    core = PlainCore()
    x, residual, dy = (2 * draw(8, 3, 4, seed=seed).double() for seed in range(3))
    mask = torch.rand(8, 1, 4, generator=torch.Generator().manual_seed(5)) < 0.7 if masked else None
    apply = Apply(draw(3, seed=3).double() + 1, draw(3, seed=4).double(), 1e-3, residual, mask, activation, 0.2)
    monkeypatch.setattr(kernels, "compiled", lambda: core)
    ours = every_derivative(x, dy, apply)
    assert core.calls == ["train", "train_backward", "unpack_signs", "unpack_signs"]
    monkeypatch.setattr(kernels, "compiled", without_core)
    torch.testing.assert_close(ours, every_derivative(x, dy, apply), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("activation", "kept"), [("relu", False), ("gelu", True), (None, False)])
def test_what_is_kept_of_a_residual(activation: str | None, kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Signs instead of it, if there are any; nothing where its gradient is that of y."""
    core = PlainCore()
    monkeypatch.setattr(kernels, "compiled", lambda: core)
    saved: list[Tensor] = []
    x, residual = draw(8, 3).requires_grad_(), draw(8, 3, seed=1).requires_grad_()

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor.to(torch.float32) if tensor.dtype == torch.uint8 else tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = batch_norm(x, None, None, training=True, residual=residual, activation=activation)
    assert any(t is residual or t.data_ptr() == residual.data_ptr() for t in saved) == kept
    assert any(t.dtype == torch.uint8 for t in saved) == (activation == "relu")
    (dresidual,) = torch.autograd.grad(y, residual, torch.ones_like(y))
    settings = reference.Settings(residual=as_array(residual), activation=activation)
    check(dresidual, reference.backward(np.ones((8, 3)), as_array(x), settings).residual)


def test_layer_without_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same layer, the same statistics; the core is asked for once a call and may come and go."""
    x, layers = draw(60, 6), [sn.BatchNorm1d(6, activation="relu") for _ in range(2)]
    expected = layers[0](x)
    monkeypatch.setattr(kernels, "compiled", without_core)
    torch.testing.assert_close(layers[1](x), expected)
    for name, value in layers[0].state_dict().items():
        torch.testing.assert_close(layers[1].state_dict()[name], value)


# ---- what a step is given ----


@SIZES
def test_parameters_that_are_not_contiguous(shape: tuple[int, ...]) -> None:
    """As columns of a matrix are: the same result and gradients as of a copy."""
    x, dy, columns = draw(*shape), draw(*shape, seed=1), draw(6, 2, seed=2)

    def results(weight: Tensor, bias: Tensor) -> list[Tensor]:
        leaves = [t.requires_grad_() for t in (x.clone(), weight, bias)]
        y = batch_norm(leaves[0], None, None, *leaves[1:], training=True)
        return [y, *torch.autograd.grad(y, leaves, dy)]

    strided = columns.unbind(1)
    assert not strided[0].is_contiguous()
    for ours, theirs in zip(results(*strided), results(*(t.clone() for t in strided)), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtypes", [(torch.float32, BFLOAT), (BFLOAT, torch.float32), (BFLOAT, BFLOAT)], ids=str)
def test_parameters_of_two_dtypes(dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    x, dy = draw(*SHAPE).to(BFLOAT), draw(*SHAPE, seed=1).to(BFLOAT)
    weight, bias = (draw(6, seed=2 + k).to(dtype).requires_grad_() for k, dtype in enumerate(dtypes))
    y = batch_norm(x, None, None, weight, bias, training=True)
    found = torch.autograd.grad(y, (weight, bias), dy)
    expected = reference.backward(as_array(dy), as_array(x), reference.Settings(as_array(weight), as_array(bias)))
    for ours, theirs, dtype in zip(found, (expected.weight, expected.bias), dtypes, strict=True):
        assert ours.dtype == dtype
        check(ours, theirs, terms=x.numel() // 6, working=torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, BFLOAT])
def test_running_statistics_of_any_dtype(dtype: torch.dtype) -> None:
    x = draw(*SHAPE).to(BFLOAT if dtype == BFLOAT else torch.float32) * 2 + 1
    running = torch.zeros(6, dtype=dtype), torch.ones(6, dtype=dtype)
    if dtype == torch.float64:
        x = x.double()
    batch_norm(x, *running, training=True, momentum=0.25)
    batch = reference.statistics(as_array(x))
    for ours, theirs in zip(running, reference.update_running([0.0] * 6, [1.0] * 6, batch, 0.25), strict=True):
        check(ours, theirs, terms=x.numel() // 6, working=torch.float32)


def test_data_that_wants_no_gradient() -> None:
    x, dy = draw(*SHAPE), draw(*SHAPE, seed=1)
    weight = draw(6, seed=2).requires_grad_()
    y = batch_norm(x, None, None, weight, training=True, activation="relu")
    (ours,) = torch.autograd.grad(y, weight, dy)
    settings = reference.Settings(as_array(weight), activation="relu")
    check(ours, reference.backward(as_array(dy), as_array(x), settings).weight, terms=x.numel() // 6)


@SIZES
def test_layer_that_a_transformation_only_captures(shape: tuple[int, ...]) -> None:
    """Everything computed under torch.func is wrapped, also from ordinary tensors."""
    x, layer = draw(*shape), sn.BatchNorm2d(6)
    plain = sn.BatchNorm2d(6, affine=False, track_running_stats=False)
    scale = torch.ones(())
    found = torch.func.grad(lambda s: (plain(x) * s).square().sum())(scale)
    torch.testing.assert_close(found, 2 * plain(x).square().sum())
    layer.eval()
    torch.testing.assert_close(
        torch.func.vmap(lambda s: s * layer(x))(draw(3)), draw(3)[:, None, None, None, None] * layer(x)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_hooks_that_save_in_another_dtype(dtype: torch.dtype) -> None:
    """What was saved comes back as it was packed: its own dtype is not taken for granted."""
    x = draw(*SHAPE).requires_grad_()
    exact = torch.autograd.grad(batch_norm(x, None, None, training=True).pow(3).sum(), x)[0]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.to(dtype), lambda t: t):
        y = batch_norm(x, None, None, training=True)
    ours = torch.autograd.grad(y, x, 3 * y.detach() ** 2)[0]
    torch.testing.assert_close(ours.float(), exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("pack", [torch.Tensor.contiguous, torch.Tensor.double], ids=["contiguous", "double"])
def test_hooks_that_lose_order_or_dtype(pack: Callable[[Tensor], Tensor], masked: bool) -> None:
    """Signs lie in memory as x did when they were written, and a mask is bool."""
    x, residual, dy = (draw(4, 5, 6, 6, seed=seed).contiguous(memory_format=torch.channels_last) for seed in range(3))
    mask = draw(4, 6, 6, seed=3) > -0.5 if masked else None
    leaves = x.requires_grad_(), residual.requires_grad_()

    def gradients(within: AbstractContextManager) -> tuple[Tensor, ...]:
        with within:
            y = batch_norm(x, None, None, training=True, residual=residual, activation="relu", mask=mask)
        first = torch.autograd.grad(y, leaves, dy, retain_graph=True)
        (graph,) = torch.autograd.grad(y, x, dy, create_graph=True)
        return first + torch.autograd.grad(graph.square().sum(), x)

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
    torch.testing.assert_close(gradients(hooks), gradients(nullcontext()), rtol=1e-4, atol=1e-5)


def test_inference_tensor_moves_nothing() -> None:
    with torch.inference_mode():
        x = draw(*SHAPE)
    layer = sn.BatchNorm2d(6)
    with pytest.raises(RuntimeError, match="Inference tensors"):
        layer(x)
    assert layer.running_mean is not None
    assert torch.equal(layer.running_mean, torch.zeros(6))
    assert layer.num_batches_tracked == 0


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@SIZES
def test_layer_and_data_on_two_devices(shape: tuple[int, ...], training: bool) -> None:
    layer = sn.BatchNorm2d(6, device="meta").train(training)
    with pytest.raises(RuntimeError, match=r"BatchNorm2d.*expected .* on the input's device cpu, got meta\. Move"):
        layer(draw(*shape))


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


@SIZES
def test_traced_inference(shape: tuple[int, ...]) -> None:
    """A trace records torch's operators, not memory that compiled code has filled."""
    layer = sn.BatchNorm2d(6, activation="relu").eval()
    with pytest.warns(Warning):
        traced = torch.jit.trace(layer, draw(*shape))
    x = draw(*shape, seed=1)
    torch.testing.assert_close(traced(x), layer(x))  # type: ignore[operator]
