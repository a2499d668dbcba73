"""What happens around a layer between its forward and its backward."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import steadynorm as sn

from ..support.twins import agree, normal, twins


def test_two_residuals_keep_their_own_gradients() -> None:
    """Gradients accumulated into one residual do not reach the other, nor the gradient that was passed in."""
    layer = sn.BatchNorm2d(3, dtype=torch.float64)
    x, dy = normal(2, 3, 4, 4), torch.ones(2, 3, 4, 4, dtype=torch.float64)
    first, second = (normal(2, 3, 4, 4, seed=s).requires_grad_() for s in (1, 2))
    (layer(x, residual=first) + layer(x, residual=second)).backward(dy)
    layer(x, residual=first).backward(dy)
    assert first.grad is not None
    assert second.grad is not None
    assert (first.grad == 2).all()
    assert (second.grad == 1).all()
    assert (dy == 1).all()


@pytest.mark.parametrize("training", [True, False])
def test_a_residual_nothing_needs_is_not_kept(training: bool) -> None:
    """Without an activation the backward does not read the residual, so it may change, and its memory is free."""
    layer = sn.BatchNorm2d(3, dtype=torch.float64).train(training)
    x, residual = normal(2, 3, 4, 4).requires_grad_(), normal(2, 3, 4, 4, seed=1)
    y = layer(x, residual=residual)
    assert all(kept is None or kept.data_ptr() != residual.data_ptr() for kept in y.grad_fn.saved_tensors)
    residual.add_(1)
    (dx,) = torch.autograd.grad(y, x, normal(2, 3, 4, 4, seed=2))
    (expected,) = torch.autograd.grad(layer(x), x, normal(2, 3, 4, 4, seed=2))
    agree(dx, expected)


def test_a_train_forward_between_an_eval_forward_and_its_backward() -> None:
    """The gradient is that of the statistics the forward used, where torch's is of those that moved since."""
    theirs, ours = (layer.eval() for layer in twins())
    x, dy = normal(4, 3, 5, 6), normal(4, 3, 5, 6, seed=1)

    def gradient(layer: torch.nn.Module, step: bool) -> Tensor:
        inputs = x.clone().requires_grad_()
        y = layer.eval()(inputs)
        if step:
            layer.train()(x * 2)
        return torch.autograd.grad(y, inputs, dy)[0]

    expected = gradient(theirs, step=False)
    agree(gradient(ours, step=True), expected)
    assert not torch.allclose(gradient(theirs, step=True), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_running_statistics_are_rounded_once(dtype: torch.dtype) -> None:
    """In float64 but for the result. 256 whole numbers a channel: their mean is exact in float32, in any order."""
    x = normal(4, 32, 8, 8).round().to(dtype)
    layer = sn.BatchNorm2d(32, dtype=dtype)
    assert layer.running_mean is not None
    layer.running_mean.copy_(normal(32, seed=1))
    before, batch = layer.running_mean.double(), x.double().mean((0, 2, 3))
    layer(x)
    assert torch.equal(layer.running_mean, (before * (1 - 0.1) + batch * 0.1).float())
    assert not torch.equal(layer.running_mean, before.float() * (1 - 0.1) + batch.float() * 0.1)


def test_both_running_statistics_move_or_neither() -> None:
    """A variance that cannot be written, as its channels share one number, leaves the mean as it was."""
    layer = sn.BatchNorm2d(3, dtype=torch.float64)
    layer.running_var = torch.ones(1, dtype=torch.float64).expand(3)
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        layer(normal(4, 3, 5, 5))
    assert torch.equal(layer.running_mean, torch.zeros(3, dtype=torch.float64))  # type: ignore[arg-type]
    assert layer.num_batches_tracked == 0
