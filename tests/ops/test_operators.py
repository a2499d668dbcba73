"""The registered operators: what torch checks of any operator, their vmap rules, and every order of derivative."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from steadynorm import functional, ops
from steadynorm.kernels import ACTIVATIONS, Apply

from ..support.marks import TORCH_JIT_WARNS

DOUBLE, BFLOAT = torch.float64, torch.bfloat16
CHOICES = [None, *ACTIVATIONS]
CHANNELS = 3
FORWARD = torch.ops.steadynorm.batch_norm.default
NORMALIZE = torch.ops.steadynorm.normalize.default
BACKWARD = torch.ops.steadynorm.batch_norm_backward.default


def normal(*shape: int, dtype: torch.dtype = DOUBLE, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).to(dtype)


@dataclass(frozen=True)
class Input:
    """Arguments of the operators."""

    name: str
    shape: tuple[int, ...] = (4, CHANNELS, 5)
    dtype: torch.dtype = torch.float32
    affine: bool = True
    residual: bool = False
    masked: bool = False
    activation: str | None = None
    groups: int = 1
    channels_last: bool = False
    requires_grad: bool = True

    def data(self, seed: int) -> Tensor:
        x = normal(*self.shape, dtype=self.dtype, seed=seed)
        return x.movedim(1, -1).contiguous().movedim(-1, 1) if self.channels_last else x

    def settings(self) -> tuple[Any, ...]:
        """What all three operators take last: weight to groups."""
        parameter = torch.float32 if self.dtype == BFLOAT else self.dtype
        own = (self.groups, CHANNELS) if self.groups > 1 else (CHANNELS,)
        weight, bias = (normal(*own, dtype=parameter, seed=s) if self.affine else None for s in (1, 2))
        mask = normal(self.shape[0], 1, *self.shape[2:], seed=3) < 0.5 if self.masked else None
        residual = self.data(4) if self.residual else None
        return weight, bias, 1e-4, residual, mask, self.activation, 0.2, self.groups

    def statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        own = (self.groups, CHANNELS)
        return normal(*own, seed=5), normal(*own, seed=6).square() + 0.1, torch.full(own, 7, dtype=DOUBLE)


INPUTS = [
    Input("plain"),
    Input("nothing asks for a gradient", requires_grad=False, activation="relu"),
    Input("not affine", (6, CHANNELS), affine=False),
    Input("residual", residual=True, activation="silu"),
    Input("residual alone", residual=True),
    Input("residual, mask", residual=True, masked=True),
    Input("channels last", (4, CHANNELS, 2, 3), residual=True, channels_last=True, activation="gelu"),
    Input("mask", masked=True, activation="tanh"),
    Input("groups", groups=2, activation="leaky_relu"),
    Input("groups, mask, channels last", (4, CHANNELS, 2, 3), masked=True, groups=2, channels_last=True),
    Input("float64", dtype=DOUBLE, residual=True, activation="sigmoid"),
    Input("bfloat16", dtype=BFLOAT, activation="relu"),
    Input("bfloat16, residual", (4, CHANNELS, 2, 3), dtype=BFLOAT, residual=True, channels_last=True),
    Input("empty batch", (0, CHANNELS, 4)),
]


def asking(values: tuple[Any, ...], requires_grad: bool = True) -> tuple[Any, ...]:
    """The data and parameters among `values`, float64 statistics excepted, as leaves that ask for a gradient."""
    return tuple(
        v.detach().requires_grad_(requires_grad) if isinstance(v, Tensor) and v.is_floating_point() else v
        for v in values
    )


@pytest.mark.parametrize("case", INPUTS, ids=lambda case: case.name)
class TestOpcheck:
    """Schema, registration of autograd, fake kernel and compiled autograd, by `torch.library.opcheck`."""

    def test_batch_norm(self, case: Input) -> None:
        torch.library.opcheck(FORWARD, asking((case.data(0), *case.settings()), case.requires_grad))

    def test_normalize(self, case: Input) -> None:
        mean, var, _ = case.statistics()
        x, *settings = asking((case.data(0), *case.settings()), case.requires_grad)
        torch.library.opcheck(NORMALIZE, (x, mean, var, *settings))

    @pytest.mark.parametrize("constant", [False, True], ids=["batch statistics", "constant statistics"])
    def test_backward(self, case: Input, constant: bool) -> None:
        mean, var, count = case.statistics()
        statistics = (mean, var, None if constant else count)
        torch.library.opcheck(BACKWARD, (case.data(7), case.data(0), *statistics, *case.settings()))


# ---- vmap rules, called as the dispatcher calls them ----

Axes = dict[str, int]
MAPPED = 4
FORMS = {"batch_norm": ("x",), "normalize": ("x", "mean", "var"), "backward": ("dy", "x", "mean", "var", "count")}
OPERATORS = {"batch_norm": FORWARD, "normalize": NORMALIZE, "backward": BACKWARD}
AXES: list[Axes] = [
    {"x": 0},
    {"x": 2},
    {"x": -1, "weight": 0, "bias": 1},
    {"weight": 0},
    {"x": 1, "residual": 3, "mask": 0},
    {"mask": 2, "bias": 0},
    {"x": 1, "weight": 0, "bias": 0, "residual": 0, "mask": 1},
]
STATISTICS_AXES: list[Axes] = [
    {"mean": 0, "var": 1},
    {"x": 1, "mean": 1, "weight": 0},
    {"x": 0, "weight": 0, "bias": 0, "residual": 0, "mask": 1, "mean": 1, "var": 0},
]
GRADIENT_AXES: list[Axes] = [{"dy": 0}, {"count": 1, "mean": 0}, {"dy": 2, "x": 1, "mean": 0, "var": 0, "count": -1}]
MAPS = [
    *(("batch_norm", axes) for axes in AXES),
    *(("normalize", axes) for axes in [*AXES, *STATISTICS_AXES]),
    *(("backward", axes) for axes in [*AXES, *STATISTICS_AXES, *GRADIENT_AXES]),
]


def arguments(form: str, axes: Axes, groups: int, shared: bool) -> dict[str, Any]:
    """Named arguments in order, MAPPED long in `axes`; values per channel are (C,) if shared, else (groups, C)."""
    own = (CHANNELS,) if shared else (groups, CHANNELS)
    shapes = {
        **dict.fromkeys(("x", "dy", "residual"), (2 * groups, CHANNELS, 5)),
        **dict.fromkeys(("weight", "bias", "mean", "var", "count"), own),
        "mask": (2 * groups, 1, 5),
    }
    names = (*FORMS[form], "weight", "bias", "eps", "residual", "mask", "activation", "negative_slope", "groups")
    fixed = {"eps": 1e-3, "activation": "silu", "negative_slope": 0.01, "groups": groups}
    values: dict[str, Any] = {}
    for seed, name in enumerate(names):
        if name in fixed:
            values[name] = fixed[name]
            continue
        shape = list(shapes[name])
        if name in axes:
            shape.insert(axes[name] % (len(shape) + 1), MAPPED)
        tensor = normal(*shape, seed=seed)
        values[name] = {"mask": tensor < 0.6, "var": tensor.square() + 0.1, "count": tensor.abs() + 5}.get(name, tensor)
    return values


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("form", "axes"), MAPS, ids=str)
def test_vmap_rule_is_a_loop(form: str, axes: Axes, groups: int, shared: bool) -> None:
    values = arguments(form, axes, groups, shared)
    operator = OPERATORS[form]
    dims = tuple(axes.get(name) for name in values)
    together = torch.vmap(operator, in_dims=dims)(*values.values())
    alone = [
        operator(*(v.select(axes[name], index) if name in axes else v for name, v in values.items()))
        for index in range(MAPPED)
    ]
    if isinstance(together, Tensor):
        together, alone = (together,), [(one,) for one in alone]
    for output, parts in zip(together, zip(*alone, strict=True), strict=True):
        torch.testing.assert_close(output, torch.stack(parts), rtol=1e-12, atol=1e-13)


# ---- derivatives ----


def test_moments_pass_no_gradient() -> None:
    """Neither from the function's route nor from the operator: running statistics hold no graph."""
    x = normal(4, CHANNELS, 5).requires_grad_()
    y, moments = ops.batch_norm(x, Apply(None, None, 1e-5))
    operator_y, *operator_moments = FORWARD(x, None, None, 1e-5, None, None, None, 0.01, 1)
    assert all(output.requires_grad for output in (y, operator_y))
    assert not any(t.requires_grad for t in (moments.count, moments.mean, moments.m2, *operator_moments))


def small_inputs(groups: int = 1, residual: bool = True) -> tuple[Tensor, ...]:
    """x, weight, bias and residual in float64, as few as still make a channel of six values a group."""
    own = (groups, 2) if groups > 1 else (2,)
    shapes = [(3 * groups, 2, 2), own, own, (3 * groups, 2, 2)][: 4 if residual else 3]
    return tuple(normal(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes))


def all_derivatives(function: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> None:
    assert gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, inputs, check_batched_grad=True)


@TORCH_JIT_WARNS
@pytest.mark.parametrize("activation", CHOICES)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_derivatives(activation: str | None, training: bool) -> None:
    """First and second, backward, forward and batched, against differences."""
    mean, var = (None, None) if training else (normal(2, seed=8), normal(2, seed=9).square() + 0.5)

    def layer(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return functional.batch_norm(
            x, mean, var, weight, bias, training, eps=1e-2, residual=residual, activation=activation
        )

    all_derivatives(layer, small_inputs())


@TORCH_JIT_WARNS
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("constant", [False, True], ids=["batch statistics", "constant statistics"])
def test_derivatives_with_groups_and_mask(masked: bool, constant: bool) -> None:
    """The second group's mask is all False: its derivatives are 0."""
    mask = torch.tensor([True, True, False] * 2 + [False] * 6).reshape(6, 1, 2) if masked else None
    mean, var = normal(2, 2, seed=8), normal(2, 2, seed=9).square() + 0.5

    def layer(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        apply = Apply(weight, bias, 1e-2, residual, mask, "silu")
        return ops.normalize(x, mean, var, apply, 2) if constant else ops.batch_norm(x, apply, 2)[0]

    all_derivatives(layer, small_inputs(groups=2))


@TORCH_JIT_WARNS
@pytest.mark.parametrize("function", [FORWARD, NORMALIZE], ids=["batch_norm", "normalize"])
def test_derivatives_of_the_operators(function: Callable[..., Any]) -> None:
    """Called directly, as a compiled program calls them."""
    statistics = () if function is FORWARD else (normal(2, seed=8), normal(2, seed=9).square() + 0.5)

    def operator(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        y = function(x, *statistics, weight, bias, 1e-2, residual, None, "tanh", 0.01, 1)
        return y if isinstance(y, Tensor) else y[0]

    assert gradcheck(operator, small_inputs())
    assert gradgradcheck(operator, small_inputs())


@pytest.mark.parametrize("rubbish", [torch.nan, torch.inf])
def test_what_the_mask_leaves_out_does_not_matter(rubbish: float) -> None:
    """First and second derivatives with padding of nan or inf are those with padding of zeros."""
    x, weight, bias, residual = small_inputs(groups=2)
    mask = torch.tensor([True, True, False, True] * 3).reshape(6, 1, 2)

    def derivatives(padding: float) -> list[Tensor]:
        data, rest = (torch.where(mask, t, padding).detach().requires_grad_() for t in (x, residual))
        inputs = (data, weight, bias, rest)
        y, _ = ops.batch_norm(data, Apply(weight, bias, 1e-2, rest, mask, "gelu"), 2)
        dy = torch.where(mask, normal(*y.shape, seed=5), padding)
        first = torch.autograd.grad(y, inputs, dy, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), inputs)  # type: ignore[arg-type]
        return [*first, *second]

    for ours, clean in zip(derivatives(rubbish), derivatives(0.0), strict=True):
        torch.testing.assert_close(ours, clean, rtol=1e-12, atol=1e-13)


def second_derivative(layer: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """In one direction, of an input (4, 2, 3)."""
    dy, u = (normal(4, 2, 3, seed=seed) for seed in (10, 11))

    def second(x: Tensor) -> Tensor:
        (first,) = torch.autograd.grad((layer(x) * dy).sum(), x, create_graph=True)
        return torch.autograd.grad((first * u).sum(), x, create_graph=True)[0]

    return second


@pytest.mark.parametrize("activation", CHOICES)
def test_third_derivative(activation: str | None) -> None:
    """One number of it by autograd is the central difference of the second, ours and torch's.

    Torch has no third: 2.13 gave a wrong one, later versions refuse. The difference is exact to step² = 1e-10 times the
    fifth derivative and to 1e-16 / step = 1e-11.
    """
    weight, bias = normal(2, seed=1) + 2, normal(2, seed=2)

    def ours(x: Tensor) -> Tensor:
        return functional.batch_norm(x, None, None, weight, bias, True, eps=1e-2, activation=activation)

    def theirs(x: Tensor) -> Tensor:
        y = F.batch_norm(x, None, None, weight, bias, True, eps=1e-2)
        return y if activation is None else getattr(F, activation)(y)

    v, w, step = normal(4, 2, 3, seed=12), normal(4, 2, 3, seed=13), 1e-5
    x = normal(4, 2, 3).requires_grad_()
    (third,) = torch.autograd.grad((second_derivative(ours)(x) * v).sum(), x)
    for layer in (ours, theirs):
        up, down = (second_derivative(layer)((x + sign * step * w).detach().requires_grad_()) for sign in (1, -1))
        difference = float(((up - down).detach() * v).sum() / (2 * step))
        assert float((third * w).sum()) == pytest.approx(difference, rel=1e-6)
