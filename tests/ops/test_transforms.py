"""torch.func over the function: every order of transforms agrees with every other and with a loop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from steadynorm.functional import batch_norm
from steadynorm.kernels import ACTIVATIONS

from ..support.marks import TORCH_JIT_WARNS

DOUBLE = torch.float64
CHOICES = [None, *ACTIVATIONS]
MAPPED = 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def loss_of(activation: str | None = "tanh", training: bool = True) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A scalar of x (3, 2, 2), weight (2,) and bias (2,), with no vanishing derivative."""
    mean, var = (None, None) if training else (normal(2, seed=8), normal(2, seed=9).square() + 0.5)

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = batch_norm(x, mean, var, weight, bias, training, eps=1e-2, residual=x.sin(), activation=activation)
        return (y.cos() * torch.arange(y.numel(), dtype=y.dtype).reshape(y.shape)).sum()

    return loss


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return normal(3, 2, 2), normal(2, seed=1), normal(2, seed=2)


def agree(ours: object, theirs: object) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def loop(function: Callable[..., Tensor], *mapped: Tensor) -> Tensor:
    return torch.stack([function(*one) for one in zip(*mapped, strict=True)])


@TORCH_JIT_WARNS
@pytest.mark.parametrize("activation", CHOICES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_second_derivatives_agree(activation: str | None, training: bool) -> None:
    """Forward over reverse, reverse over reverse, forward over forward and reverse over forward: one Hessian."""
    loss, arguments = loss_of(activation, training), inputs()
    expected = hessian(loss, argnums=(0, 1, 2))(*arguments)
    assert all(block.abs().max() > 1e-3 for block in expected[0][:1])
    for outer, inner in ((jacrev, jacrev), (jacfwd, jacfwd), (jacrev, jacfwd)):
        agree(outer(inner(loss, argnums=(0, 1, 2)), argnums=(0, 1, 2))(*arguments), expected)


@TORCH_JIT_WARNS
def test_products_are_the_jacobian() -> None:
    """jvp and vjp of the layer itself are its Jacobian times a vector."""
    x, weight, bias = inputs()

    def layer(x: Tensor) -> Tensor:
        return batch_norm(x, None, None, weight, bias, True, activation="gelu")

    jacobian = jacrev(layer)(x).reshape(x.numel(), x.numel())
    vector = normal(3, 2, 2, seed=5)
    agree(jvp(layer, (x,), (vector,))[1].flatten(), jacobian @ vector.flatten())
    agree(vjp(layer, x)[1](vector)[0].flatten(), jacobian.T @ vector.flatten())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("in_dims", [0, 1, 2, 3, -2])
def test_vmap_of_grad(training: bool, in_dims: int) -> None:
    loss, (_, weight, bias) = loss_of(training=training), inputs()
    examples = normal(MAPPED, 3, 2, 2)
    together = vmap(grad(loss), in_dims=(in_dims, None, None))(examples.movedim(0, in_dims), weight, bias)
    agree(together, loop(lambda x: grad(loss)(x, weight, bias), examples))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_grad_of_vmap(training: bool) -> None:
    """Of shared parameters too, whose gradients are summed over the examples."""
    loss, (_, weight, bias) = loss_of(training=training), inputs()
    examples = normal(MAPPED, 3, 2, 2)

    def mapped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return vmap(loss, in_dims=(0, None, None))(x, weight, bias).sum()

    def looped(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return loop(lambda one: loss(one, weight, bias), x).sum()

    every = (0, 1, 2)
    agree(grad(mapped, every)(examples, weight, bias), grad(looped, every)(examples, weight, bias))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_nested_vmap(training: bool) -> None:
    loss, (_, _, bias) = loss_of(training=training), inputs()
    examples, weights = normal(MAPPED, 5, 3, 2, 2), normal(5, 2, seed=3)
    inner = vmap(grad(loss, (0, 1)), in_dims=(0, 0, None))
    together = vmap(inner, in_dims=(0, None, None))(examples, weights, bias)
    for index in range(MAPPED):
        for position in range(5):
            expected = grad(loss, (0, 1))(examples[index, position], weights[position], bias)
            agree(tuple(t[index, position] for t in together), expected)


def test_grad_inside_and_outside_vmap() -> None:
    """vmap of a grad of a vmap."""
    loss, (_, weight, bias) = loss_of(), inputs()
    examples = normal(MAPPED, 5, 3, 2, 2)

    def total(x: Tensor) -> Tensor:
        return vmap(loss, in_dims=(0, None, None))(x, weight, bias).square().sum()

    expected = loop(grad(lambda x: loop(lambda one: loss(one, weight, bias), x).square().sum()), examples)
    agree(vmap(grad(total))(examples), expected)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_only_parameters_mapped(training: bool) -> None:
    """One x, many weights and biases."""
    loss, (x, _, _) = loss_of(training=training), inputs()
    weights, biases = normal(2, MAPPED, seed=3), normal(MAPPED, 2, seed=4)
    together = vmap(grad(loss, (0, 1, 2)), in_dims=(None, 1, 0))(x, weights, biases)
    for index in range(MAPPED):
        agree(tuple(t[index] for t in together), grad(loss, (0, 1, 2))(x, weights[:, index], biases[index]))


def test_statistics_mapped() -> None:
    """Inference with a set of running statistics for each."""
    x, weight, bias = inputs()
    means, variances = normal(MAPPED, 2, seed=3), normal(2, MAPPED, seed=4).square() + 0.5

    def layer(mean: Tensor, var: Tensor) -> Tensor:
        return batch_norm(x, mean, var, weight, bias, activation="silu")

    agree(vmap(layer, in_dims=(0, 1))(means, variances), loop(layer, means, variances.T))


def test_residual_mapped() -> None:
    x, weight, bias = inputs()
    residuals = normal(3, 2, MAPPED, 2, seed=3)

    def slope(residual: Tensor) -> Tensor:
        return grad(lambda r: batch_norm(x, None, None, weight, bias, True, residual=r, activation="gelu").sum())(
            residual
        )

    agree(vmap(slope, in_dims=2)(residuals), loop(slope, residuals.movedim(2, 0)))


@pytest.mark.parametrize("order", ["contiguous", "channels last"])
def test_memory_orders_mapped(order: str) -> None:
    examples = normal(MAPPED, 3, 2, 2, 5)
    if order == "channels last":
        examples = examples.movedim(2, -1).contiguous().movedim(-1, 2)

    def layer(x: Tensor) -> Tensor:
        return batch_norm(x, None, None, training=True)

    agree(vmap(layer)(examples), loop(layer, examples))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_batched_cotangents(training: bool) -> None:
    """`torch.autograd.grad(..., is_grads_batched=True)` is a loop over the cotangents."""
    x, weight, bias = (t.requires_grad_() for t in inputs())
    mean, var = (None, None) if training else (normal(2, seed=8), normal(2, seed=9).square() + 0.5)
    y = batch_norm(x, mean, var, weight, bias, training, activation="silu")
    cotangents = normal(MAPPED, 3, 2, 2, seed=5)
    together = torch.autograd.grad(y, (x, weight, bias), cotangents, is_grads_batched=True, retain_graph=True)
    alone = [torch.autograd.grad(y, (x, weight, bias), dy, retain_graph=True) for dy in cotangents]
    agree(together, tuple(torch.stack(parts) for parts in zip(*alone, strict=True)))


@TORCH_JIT_WARNS
def test_third_derivatives_agree() -> None:
    loss, (x, weight, bias) = loss_of("silu"), inputs()

    def of_x(x: Tensor) -> Tensor:
        return loss(x, weight, bias)

    agree(jacrev(jacrev(jacrev(of_x)))(x), jacfwd(jacfwd(jacrev(of_x)))(x))


def test_compiled_vmap() -> None:
    """The compiler's route through vmap: the operators' own rules."""
    _, weight, bias = inputs()
    examples = normal(MAPPED, 3, 2, 2)

    def mapped(x: Tensor, weight: Tensor) -> Tensor:
        def layer(x: Tensor, weight: Tensor) -> Tensor:
            return batch_norm(x, None, None, weight, bias, True, activation="gelu")

        return vmap(layer, in_dims=(0, None))(x, weight)

    compiled = torch.compile(mapped, fullgraph=True, backend="aot_eager")
    x, weight = examples.requires_grad_(), weight.requires_grad_()
    ours, plain = compiled(x, weight), mapped(x, weight)
    agree(ours, plain)
    dy = normal(*plain.shape, seed=6)
    agree(torch.autograd.grad(ours, (x, weight), dy), torch.autograd.grad(plain, (x, weight), dy))
