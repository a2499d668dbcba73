"""Training on the CPU beyond small tensors, which compiled code does in one call each way."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor

import steadynorm as sn
from steadynorm import reference
from steadynorm.functional import batch_norm
from steadynorm.kernels import Apply, Running
from steadynorm.ops import fused, small

from ..support.tolerance import as_array, check

SHAPE = (16, 6, 37, 41)
BFLOAT = torch.bfloat16


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def serves(x: Tensor) -> bool:
    running = Running(torch.zeros(x.shape[1]), torch.ones(x.shape[1]))
    return fused.batch_norm(x, Apply(None, None, 1e-5), running) is not None


def test_tensors_here_are_not_small() -> None:
    assert draw(*SHAPE).numel() > small.LARGEST
    assert serves(draw(*SHAPE))


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


@pytest.mark.parametrize("shape", [SHAPE, (8, 6, 5, 5)], ids=["large", "small"])
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
@pytest.mark.parametrize("shape", [SHAPE, (8, 6, 5, 5)], ids=["large", "small"])
def test_layer_and_data_on_two_devices(shape: tuple[int, ...], training: bool) -> None:
    layer = sn.BatchNorm2d(6, device="meta").train(training)
    with pytest.raises(RuntimeError, match=r"BatchNorm2d.*expected .* on the input's device cpu, got meta\. Move"):
        layer(draw(*shape))


def test_small_layer_does_not_hold_its_input() -> None:
    """Once its graph is freed, and where hooks pack what is saved, as activation checkpointing does."""
    x = draw(8, 6).requires_grad_() * 1
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
        y = batch_norm(x, None, None, training=True)
    there = weakref.ref(x)
    del x
    gc.collect()
    assert there() is None
    y.sum().backward()


@pytest.mark.parametrize("shape", [SHAPE, (8, 6, 5, 5)], ids=["large", "small"])
def test_traced_inference(shape: tuple[int, ...]) -> None:
    """A trace records torch's operators, not memory that compiled code has filled."""
    layer = sn.BatchNorm2d(6, activation="relu").eval()
    with pytest.warns(Warning):
        traced = torch.jit.trace(layer, draw(*shape))
    x = draw(*shape, seed=1)
    torch.testing.assert_close(traced(x), layer(x))  # type: ignore[operator]
