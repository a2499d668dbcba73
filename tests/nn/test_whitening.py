"""WhiteningBatchNorm against eigenvalues in NumPy, and what whitened data is."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import steadynorm as sn
from steadynorm.nn.inverse_root import by_eigenvalues, by_newton
from steadynorm.nn.whitening import METHODS
from steadynorm.reference import Settings

from ..support.related import covariances, inverse_root, newton_inverse_root, real_columns, whiten
from ..support.tolerance import check
from ..support.twins import agree, agree_in_state, normal

DOUBLE = torch.float64
SHAPES = [(40, 4), (9, 4, 7), (5, 4, 3, 5), (3, 4, 2, 3, 4)]


def mixed(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    """Correlated channels: each is the sum of those before it, in part."""
    x = normal(*shape, seed=seed)
    return (x + 0.5 * x.cumsum(1)).to(dtype)


def whitening(group_size: int | None = None, method: str = "zca", channels: int = 4, **settings: Any) -> Any:
    """A layer in float64 whose weight and bias are not 1 and 0."""
    layer = sn.WhiteningBatchNorm(channels, group_size, method, dtype=DOUBLE, **settings)
    with torch.no_grad():
        for seed, parameter in enumerate(layer.parameters()):
            parameter.copy_(normal(channels, seed=seed))
    return layer


def expected_matrix(layer: Any, covariance: np.ndarray) -> np.ndarray:
    if layer.method == "zca":
        return inverse_root(covariance, layer.eps)
    return newton_inverse_root(covariance, layer.eps, layer.iterations)


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("group_size", [None, 2, 1])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_train_and_eval(shape: tuple[int, ...], method: str, group_size: int | None, masked: bool) -> None:
    """Output, the statistics after one batch, and inference by them, in float64."""
    layer = whitening(group_size, method, activation="silu")
    x, residual = mixed(*shape), normal(*shape, seed=1)
    real = torch.rand(shape[0], 1, *shape[2:], generator=torch.Generator().manual_seed(0)) < 0.8 if masked else None
    mask = None if real is None else real.numpy()
    weight, bias = (p.detach().numpy() for p in layer.parameters())
    settings = Settings(weight, bias, layer.eps, residual.numpy(), mask, "silu")
    mean, covariance = covariances(x.numpy(), layer.group_size, mask)
    count = real_columns(x.numpy(), mask).shape[1]

    hidden = x if real is None else torch.where(real, x, torch.nan)
    y = layer(hidden, residual=residual, mask=real)
    expected = whiten(x.numpy(), mean, expected_matrix(layer, covariance), settings)
    agree(y, torch.from_numpy(expected), rtol=1e-10, atol=1e-11)

    running_mean = 0.1 * mean
    running_covariance = 0.9 * np.eye(layer.group_size) + 0.1 * covariance * count / (count - 1)
    agree(layer.running_mean, torch.from_numpy(running_mean))
    agree(layer.running_covariance, torch.from_numpy(running_covariance))
    assert layer.num_batches_tracked == 1
    y = layer.eval()(hidden, residual=residual, mask=real)
    expected = whiten(x.numpy(), running_mean, expected_matrix(layer, running_covariance), settings)
    agree(y, torch.from_numpy(expected), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("method", "iterations"), [("zca", 5), ("iternorm", 30)])
def test_channels_are_uncorrelated(method: str, iterations: int) -> None:
    """Variance 1 and no correlation, within each group."""
    layer = sn.WhiteningBatchNorm(4, 2, method, iterations, eps=1e-12, dtype=DOUBLE)
    y = layer(mixed(50, 4, 3))
    covariance = covariances(y.detach().numpy(), 4)[1][0]
    np.testing.assert_allclose(covariance[:2, :2], np.eye(2), atol=1e-9)
    np.testing.assert_allclose(covariance[2:, 2:], np.eye(2), atol=1e-9)
    assert abs(covariance[0, 3]) > 0.1


def test_few_iterations_stop_short() -> None:
    """IterNorm's variances grow with each iteration towards 1 and never pass it."""
    x, seen = mixed(50, 4, 3), []
    for iterations in (1, 3, 5, 10, 40):
        layer = sn.WhiteningBatchNorm(4, None, "iternorm", iterations, eps=1e-9, dtype=DOUBLE)
        seen.append(np.linalg.eigvalsh(covariances(layer(x).detach().numpy(), 4)[1][0])[0])
    assert (np.diff(seen) > -1e-12).all()
    assert seen[0] < 0.5
    assert seen[-1] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_groups_of_one_are_batch_norm(method: str, training: bool) -> None:
    layer = whitening(1, method, activation="relu", momentum=None)
    plain = sn.BatchNorm2d(4, momentum=None, activation="relu", dtype=DOUBLE)
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k in ("weight", "bias")}, strict=False)
    for seed in range(2):
        x = mixed(5, 4, 3, 4, seed=seed)
        agree(layer.train()(x), plain.train()(x))
    agree(layer.running_mean, plain.running_mean)
    agree(layer.running_covariance.flatten(), plain.running_var)
    x = mixed(5, 4, 3, 4, seed=2)
    agree(layer.train(training)(x), plain.train(training)(x))


@given(st.integers(3, 12), st.sampled_from(METHODS), st.integers(0, 2**31))
def test_permutations(examples: int, method: str, seed: int) -> None:
    """Of the batch, and of the channels, which ZCA treats alike."""
    x, generator = mixed(examples, 4, 3, seed=seed), torch.Generator().manual_seed(seed)
    order, channels = torch.randperm(examples, generator=generator), torch.randperm(4, generator=generator)
    y = sn.WhiteningBatchNorm(4, None, method, dtype=DOUBLE)(x)
    for permuted, expected in ((x[order], y[order]), (x[:, channels], y[:, channels])):
        agree(sn.WhiteningBatchNorm(4, None, method, dtype=DOUBLE)(permuted), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_derivatives(method: str, masked: bool, training: bool) -> None:
    layer = whitening(2, method, activation="tanh", track_running_stats=False)
    if not training:
        layer = whitening(2, method, activation="tanh").eval()
        layer.running_covariance.copy_(torch.tensor([[2.0, 0.5], [0.5, 1.0]]))
    x, residual = (mixed(3, 4, 3, seed=seed).requires_grad_() for seed in (0, 1))
    mask = torch.tensor([3, 1, 2]) if masked else None
    inputs = (x, residual, *layer.parameters())

    def call(x: Tensor, residual: Tensor, *_: Tensor) -> Tensor:
        return layer(x, mask=mask, residual=residual)

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs, fast_mode=True)


def test_equal_eigenvalues_have_derivatives() -> None:
    """torch's own eigh divides by their differences, and gives nan."""
    matrix = torch.eye(3, dtype=DOUBLE, requires_grad=True)

    def ours(matrix: Tensor) -> Tensor:
        return by_eigenvalues((matrix + matrix.mT) / 2, 1e-3)

    assert torch.autograd.gradcheck(ours, matrix)
    assert torch.autograd.gradgradcheck(ours, matrix)
    values, vectors = torch.linalg.eigh(matrix)
    theirs = (vectors / values.sqrt()) @ vectors.mT
    assert torch.autograd.grad(theirs[0, 1], matrix)[0].isnan().any()


def test_roots_of_ill_conditioned_matrices() -> None:
    """Eigenvalues from 1e-6 to 1: Newton's iteration stays where it converged; the plain form of it would not."""
    vectors = torch.linalg.qr(normal(6, 6)).Q
    matrix = (vectors * torch.logspace(-6, 0, 6, dtype=DOUBLE)) @ vectors.mT
    exact = torch.from_numpy(inverse_root(matrix.numpy(), 1e-9))
    agree(by_eigenvalues(matrix, 1e-9), exact, rtol=1e-8, atol=1e-7)
    agree(by_newton(matrix, 1e-9, 60), exact, rtol=1e-8, atol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_float32_is_near_float64(method: str) -> None:
    """A mean of 1e4 costs nothing but the inputs' own rounding: elements are centred before anything is multiplied."""
    x = (mixed(64, 4, 5, 5) + 1e4).to(torch.float32)
    layer, exact = sn.WhiteningBatchNorm(4, None, method), sn.WhiteningBatchNorm(4, None, method, dtype=DOUBLE)
    check(layer(x), exact(x.double()).detach().numpy(), terms=8)
    check(layer.running_mean, exact.running_mean.numpy())  # type: ignore[union-attr]
    check(layer.running_covariance, exact.running_covariance.numpy(), terms=8)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("group_size", [None, 2])
def test_inference_is_one_convolution(method: str, group_size: int | None) -> None:
    layer = whitening(group_size, method)
    layer(mixed(5, 4, 3, 5))
    matrix, shift = layer.linear_map()
    assert (matrix.shape, shift.shape) == ((4 // layer.group_size, layer.group_size, layer.group_size), (4,))
    assert not matrix.requires_grad
    x = mixed(5, 4, 3, 5, seed=1)
    kernel = matrix.reshape(4, layer.group_size, 1, 1)
    agree(torch.nn.functional.conv2d(x, kernel, shift, groups=len(matrix)), layer.eval()(x), rtol=1e-10, atol=1e-11)
    unscaled = sn.WhiteningBatchNorm(4, group_size, method, affine=False, dtype=DOUBLE)
    unscaled.load_state_dict({k: v for k, v in layer.state_dict().items() if k not in ("weight", "bias")}, strict=True)
    agree(unscaled.linear_map()[0] * layer.weight.reshape(len(matrix), -1, 1), matrix)


def test_copies_and_state_dicts() -> None:
    layer = whitening(2)
    layer(mixed(5, 4, 3, 5))
    twin = sn.WhiteningBatchNorm(4, 2, "zca", dtype=DOUBLE)
    twin.load_state_dict(layer.state_dict(), strict=True)
    agree_in_state(twin, layer, rtol=0, atol=0)
    assert list(twin.state_dict()) == ["weight", "bias", "running_mean", "num_batches_tracked", "running_covariance"]
    x = mixed(5, 4, 3, 5, seed=1)
    agree(copy.deepcopy(layer)(x), twin(x), rtol=0, atol=0)
    twin.reset_running_stats()
    agree(twin.running_covariance, torch.eye(2, dtype=DOUBLE).expand(2, 2, 2))
    assert (twin.running_mean, twin.num_batches_tracked) == (pytest.approx(0), 0)
