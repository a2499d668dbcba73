"""Small tensors, which go to torch's own operator where that is exact, and only there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steadynorm import ops, reference
from steadynorm.functional import batch_norm
from steadynorm.kernels import Apply, Running
from steadynorm.ops import small

from ..support.tolerance import as_array, check


def draw(*shape: int, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std + mean


def goes_to_torch(x: Tensor, **changes: object) -> bool:
    apply = Apply(torch.ones(x.shape[1]), torch.zeros(x.shape[1]), 1e-5)._replace(**changes)  # type: ignore[arg-type]
    return small.batch_norm(x, apply, Running(torch.zeros(x.shape[1]), torch.ones(x.shape[1]))) is not None


def test_what_goes_to_torch() -> None:
    x = draw(60, 10)
    assert goes_to_torch(x)
    assert goes_to_torch(x, activation="relu")
    assert goes_to_torch(x.bfloat16())
    assert not goes_to_torch(x.bfloat16(), weight=None, bias=None)
    assert not goes_to_torch(x, activation="gelu")
    assert goes_to_torch(x, residual=x)
    assert not goes_to_torch(x, residual=x.t().contiguous().t())
    assert not goes_to_torch(x.double())
    assert not goes_to_torch(x.t().contiguous().t())
    assert not goes_to_torch(draw(small.LARGEST // 8 + 1, 8))


@pytest.mark.parametrize(
    "case", [(1e4, 1.0), (-100.0, 1.0), (0.0, 1e-4)], ids=["far mean", "far below 0", "small spread"]
)
def test_what_would_cost_accuracy_does_not(case: tuple[float, float]) -> None:
    """Nothing is moved by the refusal, and the result is as exact as ever."""
    mean, std = case
    x = draw(60, 3, mean=mean, std=std)
    running = torch.zeros(3), torch.ones(3)
    assert small.batch_norm(x, Apply(None, None, 1e-5), Running(*running)) is None
    assert torch.equal(running[0], torch.zeros(3))
    assert torch.equal(running[1], torch.ones(3))
    check(batch_norm(x, None, None, training=True), reference.forward(as_array(x))[0])


@pytest.mark.parametrize("activation", [None, "relu"])
def test_result_gradients_and_running_statistics(activation: str | None) -> None:
    x, dy = draw(64, 6, mean=2.0), draw(64, 6, seed=1)
    weight, bias = draw(6, seed=2).requires_grad_(), draw(6, seed=3).requires_grad_()
    running = torch.zeros(6), torch.ones(6)
    leaf = x.clone().requires_grad_()
    y = batch_norm(leaf, *running, weight, bias, training=True, momentum=0.25, activation=activation)
    settings = reference.Settings(as_array(weight), as_array(bias), activation=activation)
    expected, batch = reference.forward(as_array(x), settings)
    check(y, expected)
    gradients = reference.backward(as_array(dy), as_array(x), settings)
    for ours, theirs in zip(torch.autograd.grad(y, (leaf, weight, bias), dy), gradients, strict=False):
        check(ours, theirs, terms=64)
    for ours, theirs in zip(running, reference.update_running([0.0] * 6, [1.0] * 6, batch, 0.25), strict=True):
        check(ours, theirs)


def test_third_derivative() -> None:
    """torch's own is silently wrong; a graph of the gradient is ours."""

    def third(x: Tensor) -> Tensor:
        y = batch_norm(x, None, None, training=True) ** 3
        for seed in range(2):
            (y,) = torch.autograd.grad((y * draw(6, 2, seed=seed).to(x.dtype)).sum(), x, create_graph=True)
        return torch.autograd.grad((y * draw(6, 2, seed=5).to(x.dtype)).sum(), x)[0]

    x = draw(6, 2)
    assert goes_to_torch(x)
    exact = third(x.double().requires_grad_())
    torch.testing.assert_close(third(x.clone().requires_grad_()).double(), exact, rtol=1e-4, atol=1e-4)


def test_graph_of_the_gradients_of_16_bit_data() -> None:
    """Each gradient has the dtype of what it is of: parameters may be wider than the data."""
    x, weight, bias = draw(64, 6).bfloat16(), draw(6, seed=2), draw(6, seed=3)
    assert goes_to_torch(x, weight=weight, bias=bias)
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = batch_norm(leaves[0], None, None, *leaves[1:], training=True)
    dy = draw(64, 6, seed=1).bfloat16()
    graph = torch.autograd.grad(y, leaves, dy, create_graph=True)
    expected = reference.backward(as_array(dy), as_array(x), reference.Settings(as_array(weight), as_array(bias)))
    for leaf, ours, theirs in zip(leaves, graph, expected, strict=False):
        assert ours.dtype == leaf.dtype
        check(ours.detach(), theirs, terms=64, working=torch.float32)


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


def test_inference() -> None:
    """To torch where no gradient is wanted and no mean is far; the same values either way."""
    x, mean, var = draw(60, 3), torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 4.0, 0.5])
    apply = Apply(None, None, 1e-5, activation="relu")
    y = small.normalize(x, mean, var, apply)
    assert y is not None
    torch.testing.assert_close(y, ops.normalize(x, mean, var, apply))
    assert small.normalize(x.clone().requires_grad_(), mean, var, apply) is None
    assert small.normalize(x, mean + 100, var, apply) is None
