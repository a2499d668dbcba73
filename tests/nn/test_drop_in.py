"""The contract of torch's layers: ours beside torch's twin."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import steadynorm as sn

from ..support.twins import SHAPES, agree, agree_in_state, normal, step, twins

KINDS = [(kind, shape) for kind, shapes in SHAPES.items() for shape in shapes]


# ---- construction ----


@pytest.mark.parametrize("kind", SHAPES)
def test_signature_starts_with_torchs(kind: str) -> None:
    """The same parameters, order, kinds and defaults; what we add is keyword-only and optional."""
    theirs = list(inspect.signature(getattr(torch.nn, kind)).parameters.values())
    ours = list(inspect.signature(getattr(sn, kind)).parameters.values())
    for our, their in zip(ours, theirs, strict=False):
        assert (our.name, our.kind, our.default) == (their.name, their.kind, their.default)
    added = ours[len(theirs) :]
    assert added
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in added)


@pytest.mark.parametrize("kind", SHAPES)
def test_is_torchs_layer(kind: str) -> None:
    layer = getattr(sn, kind)(3)
    assert isinstance(layer, getattr(torch.nn, kind))
    assert type(layer).__name__ == kind


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("settings", [{}, {"eps": 1e-3, "momentum": None}, {"affine": False, "bias": False}], ids=str)
def test_repr(kind: str, settings: dict[str, Any]) -> None:
    """torch's, and the epilogue after it."""
    assert repr(getattr(sn, kind)(3, **settings)) == repr(getattr(torch.nn, kind)(3, **settings))
    plain = repr(getattr(torch.nn, kind)(3, **settings))[:-1]
    assert repr(getattr(sn, kind)(3, **settings, activation="relu")) == plain + ", activation='relu')"
    leaky = getattr(sn, kind)(3, **settings, activation="leaky_relu", negative_slope=0.3)
    assert repr(leaky) == plain + ", activation='leaky_relu', negative_slope=0.3)"


SETTINGS = [
    {},
    {"momentum": None},
    {"momentum": 0.0},
    {"momentum": 1.0},
    {"eps": 0.5},
    {"affine": False},
    {"bias": False},
    {"track_running_stats": False},
    {"affine": False, "track_running_stats": False},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize(("kind", "shape"), KINDS)
def test_train_then_eval(kind: str, shape: tuple[int, ...], settings: dict[str, Any]) -> None:
    """Three batches, the second empty, in train mode, then one in eval mode: outputs, gradients and state."""
    theirs, ours = twins(kind, **settings)
    for seed, size in enumerate((shape[0], 0, shape[0] + 3)):
        x = normal(size, *shape[1:], seed=seed)
        agree(step(ours, x), step(theirs, x))
        agree_in_state(ours, theirs)
    theirs.eval()
    ours.eval()
    x = normal(*shape, seed=5)
    agree(step(ours, x), step(theirs, x))
    agree_in_state(ours, theirs)


def test_cumulative_average() -> None:
    """momentum=None: after k batches the running statistics are the plain mean of the batches'."""
    layer = sn.BatchNorm1d(3, momentum=None, dtype=torch.float64)
    batches = [normal(8, 3, seed=seed) for seed in range(4)]
    for x in batches:
        layer(x)
    agree(layer.running_mean, torch.stack([x.mean(0) for x in batches]).mean(0))
    agree(layer.running_var, torch.stack([x.var(0) for x in batches]).mean(0))
    assert layer.num_batches_tracked == 4


def test_not_tracking_uses_the_batch_in_eval() -> None:
    layer = sn.BatchNorm1d(3, affine=False, track_running_stats=False, dtype=torch.float64).eval()
    x = normal(50, 3)
    agree(layer(x), (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt())
    assert not layer.state_dict()


def test_batches_are_counted_in_train_mode_only() -> None:
    layer = sn.BatchNorm1d(3)
    for training in (True, False, True, True):
        layer.train(training)(torch.randn(4, 3))
    assert layer.num_batches_tracked == 3
    layer.reset_running_stats()
    agree_in_state(layer, sn.BatchNorm1d(3))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    "gone",
    [("running_mean", "running_var"), ("running_mean", "running_var", "num_batches_tracked"), ("num_batches_tracked",)],
    ids=",".join,
)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_buffers_set_to_none(gone: tuple[str, ...], training: bool, momentum: float | None) -> None:
    """As torch allows: without running statistics the batch's normalize; without a count none is kept."""
    layers = twins(momentum=momentum)
    x = normal(4, 3, 5, 6)
    for layer in layers:
        layer.train(training)
        for name in gone:
            setattr(layer, name, None)
    theirs, ours = layers
    agree(step(ours, x), step(theirs, x))
    agree_in_state(ours, theirs)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_tracking_switched_off_later(training: bool) -> None:
    """`track_running_stats = False` on a layer with running statistics: they stand still, and serve in eval mode."""
    theirs, ours = twins()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    for layer in (theirs, ours):
        layer.track_running_stats = False
        layer.train(training)
    x = normal(4, 3, 5, 6)
    agree(step(ours, x), step(theirs, x))
    agree(dict(ours.state_dict()), before, rtol=0, atol=0)


def test_frozen_parameters_need_no_gradient() -> None:
    """Only the input's gradient is asked for, or only the weight's, or none."""
    x, dy = normal(4, 3, 5, 6), normal(4, 3, 5, 6, seed=1)
    inputs, weights = [], []
    for layer in twins():
        layer.requires_grad_(False)
        leaf = x.clone().requires_grad_()
        inputs.append(torch.autograd.grad(layer(leaf), leaf, dy)[0])
        layer.weight.requires_grad_(True)
        weights.append(torch.autograd.grad(layer(x), layer.weight, dy)[0])
        layer.requires_grad_(False)
        assert not layer(x).requires_grad
    agree(inputs[1], inputs[0])
    agree(weights[1], weights[0])


ACTIVATIONS = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": partial(F.leaky_relu, negative_slope=0.3),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activation_is_torchs_function_after_the_layer(activation: str, training: bool) -> None:
    theirs, ours = twins()
    ours.activation, ours.negative_slope = activation, 0.3
    x = normal(4, 3, 5, 6)
    agree(ours.train(training)(x), ACTIVATIONS[activation](theirs.train(training)(x)))


# ---- memory ----


LAYOUTS = {
    "contiguous": normal(4, 6, 5, 7),
    "channels last": normal(4, 6, 5, 7).to(memory_format=torch.channels_last),
    "slice": normal(4, 6, 5, 14)[..., ::2],
    "crop": normal(4, 6, 9, 7)[:, :, 2:7],
    "permuted": normal(5, 6, 4, 7).permute(2, 1, 0, 3),
    "expanded": normal(1, 6, 5, 7).expand(4, 6, 5, 7),
    "one example, channels last": normal(1, 6, 5, 7).to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_order(layout: str, training: bool) -> None:
    """channels_last in and out, also of the gradient; what is not dense comes out contiguous, as torch's does."""
    x = LAYOUTS[layout]
    for dy_format in (torch.contiguous_format, torch.channels_last):
        found = []
        for layer in twins(features=6):
            data = x.detach().requires_grad_()
            y = layer.train(training)(data)
            (dx,) = torch.autograd.grad(y, data, normal(*y.shape, seed=1).to(memory_format=dy_format))
            found.append((y, dx))
        (their_y, their_dx), (y, dx) = found
        agree((y, dx), (their_y, their_dx))
        assert y.stride() == their_y.stride()
        assert dx.stride() == their_dx.stride()
    assert y.is_contiguous(memory_format=torch.channels_last) == layout.endswith("channels last")


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", [None, "relu", "silu"])
@pytest.mark.parametrize("residual", [False, True])
def test_what_follows_may_work_in_place(training: bool, activation: str | None, residual: bool) -> None:
    """An in-place ReLU after the layer gives the gradients of one out of place: backward keeps nothing of y."""
    x = normal(4, 3, 5, 6)
    found = []
    for inplace in (True, False):
        _, layer = twins()
        layer.activation = activation
        layer.train(training)
        data, rest = x.clone().requires_grad_(), normal(4, 3, 5, 6, seed=2).requires_grad_()
        y = layer(data, residual=rest if residual else None)
        z = torch.nn.functional.relu(y - 0 if not inplace else y, inplace=inplace)
        grads = torch.autograd.grad(z, (data, *layer.parameters(), *((rest,) if residual else ())), torch.ones_like(z))
        found.append([z, *grads])
    agree(found[0], found[1], rtol=0, atol=0)


def test_input_is_left_alone() -> None:
    _, layer = twins()
    x, residual = normal(4, 3, 5, 6), normal(4, 3, 5, 6, seed=1)
    before, before_residual = x.clone(), residual.clone()
    for training in (True, False):
        layer.train(training)(x, residual=residual)
    assert torch.equal(x, before)
    assert torch.equal(residual, before_residual)


def test_dimensions_that_a_subclass_checks() -> None:
    """`_check_input_dim` is torch's place to say what is taken."""

    class Flat(sn.BatchNorm2d):
        def _check_input_dim(self, input: torch.Tensor) -> None:
            raise ValueError("flat ones only")

    with pytest.raises(ValueError, match="flat ones only"):
        Flat(3)(torch.zeros(2, 3, 4, 4))


def test_eval_without_a_count_of_batches() -> None:
    ours, theirs = sn.BatchNorm2d(3).eval(), torch.nn.BatchNorm2d(3).eval()
    for layer in (ours, theirs):
        del layer.num_batches_tracked
    x = torch.arange(24.0).reshape(2, 3, 2, 2)
    torch.testing.assert_close(ours(x), theirs(x))
