"""The oracle itself: values by hand, central differences, and torch in float64."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
import torch

from steadynorm import reference
from steadynorm.kernels import ACTIVATIONS
from steadynorm.reference import Settings

from .support.peers import gradients, torch_batch_norm

RNG = np.random.default_rng(0)
CHOICES = (None, *ACTIVATIONS)


def test_values_by_hand() -> None:
    """Four values 1, 2, 3, 6: mean 3, variance (4 + 1 + 0 + 9) / 4 = 3.5."""
    x = np.array([[1.0], [2.0], [3.0], [6.0]])
    y, batch = reference.forward(x, Settings(weight=[2.0], bias=[1.0], eps=0.5))
    assert (batch.count, batch.mean, batch.var) == (4, 3, 3.5)
    np.testing.assert_allclose(y[:, 0], [-1, 0, 1, 4])  # sqrt(3.5 + 0.5) = 2
    mean, var = reference.update_running([0.0], [1.0], batch, momentum=0.1)
    np.testing.assert_allclose(mean, [0.3])
    np.testing.assert_allclose(var, [0.9 + 0.1 * 14 / 3])
    np.testing.assert_allclose(reference.inference(x, [1.0], [3.5], Settings(eps=0.5))[:, 0], [0, 0.5, 1, 2.5])


def test_backward_by_hand() -> None:
    """dy = (1, 0, 0, 0), xhat = (-1, -0.5, 0, 1.5): dbias 1, dweight -1, dx = (dz - 1/4 + xhat/4) / 2 * weight."""
    x = np.array([[1.0], [2.0], [3.0], [6.0]])
    grads = reference.backward(np.array([[1.0], [0], [0], [0]]), x, Settings(weight=[2.0], eps=0.5))
    np.testing.assert_allclose(grads.bias, [1])
    np.testing.assert_allclose(grads.weight, [-1])
    np.testing.assert_allclose(grads.x[:, 0], [0.5, -0.375, -0.25, 0.125])
    assert abs(grads.x.sum()) < 1e-15


def test_mask_equals_leaving_out() -> None:
    x, real = RNG.normal(size=(6, 3)), np.array([True, True, False, True, False, True])
    x[~real] = 1e6
    y, batch = reference.forward(x, Settings(mask=real[:, None]))
    expected, expected_batch = reference.forward(x[real])
    np.testing.assert_allclose(y[real], expected)
    assert not y[~real].any()
    for ours, theirs in zip(astuple(batch), astuple(expected_batch), strict=True):
        np.testing.assert_allclose(ours, theirs)


def test_nothing_real_keeps_running_statistics() -> None:
    batch = reference.statistics(np.ones((2, 3)), mask=np.zeros((2, 1), bool))
    mean, var = reference.update_running([1.0, 2, 3], [4.0, 5, 6], batch, momentum=0.5)
    assert (list(mean), list(var)) == ([1, 2, 3], [4, 5, 6])


@pytest.mark.parametrize("activation", CHOICES)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_gradient_is_the_central_difference(activation: str | None, training: bool, masked: bool) -> None:
    x, dy, residual = RNG.normal(size=(3, 4, 2, 3))
    mean, var = RNG.normal(size=2), RNG.uniform(0.5, 2, size=2)
    mask = RNG.random((4, 1, 3)) < 0.7 if masked else None
    x, dy, residual = (np.ascontiguousarray(a) for a in (x, dy, residual))
    affine = RNG.normal(size=(2, 2))

    def loss(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, residual: np.ndarray) -> float:
        settings = Settings(weight, bias, 1e-3, residual, mask, activation)
        y = reference.forward(x, settings)[0] if training else reference.inference(x, mean, var, settings)
        return float((y * dy).sum())

    inputs = [x, affine[0], affine[1], residual]
    settings = Settings(affine[0], affine[1], 1e-3, residual, mask, activation)
    if training:
        grads = reference.backward(dy, x, settings)
    else:
        grads = reference.inference_backward(dy, x, mean, var, settings)
    for position, grad in enumerate(grads):
        numeric = np.empty_like(grad)
        for index in np.ndindex(grad.shape):
            step = np.zeros_like(grad)
            step[index] = 1e-6
            up, down = ([*inputs[:position], inputs[position] + s, *inputs[position + 1 :]] for s in (step, -step))
            numeric[index] = (loss(*up) - loss(*down)) / 2e-6
        np.testing.assert_allclose(grad, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("activation", CHOICES)
@pytest.mark.parametrize("training", [True, False])
def test_agrees_with_torch_in_float64(activation: str | None, training: bool) -> None:
    x, residual, dy = (torch.randn(5, 3, 4, 2, dtype=torch.float64) for _ in range(3))
    weight, bias, mean = (torch.randn(3, dtype=torch.float64) for _ in range(3))
    var = torch.rand(3, dtype=torch.float64) + 0.5
    inputs = [t.requires_grad_() for t in (x, weight, bias, residual)]
    settings = Settings(weight.detach(), bias.detach(), 1e-5, residual.detach(), None, activation)
    old_mean, old_var = mean.numpy().copy(), var.numpy().copy()
    if training:
        y, batch = reference.forward(x.detach(), settings)
        grads = reference.backward(dy, x.detach(), settings)
        new_mean, new_var = reference.update_running(old_mean, old_var, batch, momentum=0.1)
    else:
        y = reference.inference(x.detach(), old_mean, old_var, settings)
        grads = reference.inference_backward(dy, x.detach(), old_mean, old_var, settings)
        new_mean, new_var = old_mean, old_var
    expected = torch_batch_norm(x, mean, var, weight, bias, training, residual, activation)
    np.testing.assert_allclose(y, expected.detach(), rtol=1e-12, atol=1e-13)
    for ours, theirs in zip(grads, gradients(expected, dy, *inputs), strict=True):
        assert theirs is not None
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(new_mean, mean, rtol=1e-14)
    np.testing.assert_allclose(new_var, var, rtol=1e-14)
