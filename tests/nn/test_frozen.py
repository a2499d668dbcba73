"""FrozenBatchNorm: inference against the reference in either mode, checkpoints of torch's, and nothing that moves."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import steadynorm as sn
from steadynorm import reference
from steadynorm.reference import Settings

from ..support.cases import CASES, Case, by_name, example
from ..support.peers import gradients, torch_batch_norm
from ..support.tolerance import check
from ..support.twins import agree, agree_in_state, normal, twins

DOUBLE = torch.float64
MODES = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def frozen_layer(activation: str | None = None) -> sn.FrozenBatchNorm:
    """Three channels in float64, state of a trained layer."""
    layer = twins()[1]
    layer.activation = activation
    return sn.FrozenBatchNorm.from_batch_norm(layer)


@MODES
@pytest.mark.parametrize("case", CASES, ids=by_name)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_case(case: Case, training: bool) -> None:
    """Output and gradients are inference's; the state stays bit for bit."""
    data = example(case)
    layer = sn.FrozenBatchNorm(case.shape[1], affine=case.affine, activation=case.activation).train(training)
    layer.to(torch.float32 if case.dtype.itemsize < 4 else case.dtype)
    layer.running_mean.fill_(0.9 * case.mean + 0.1)
    layer.running_var.fill_(case.std**2 * 1.5)
    if layer.weight is not None and layer.bias is not None and data.weight is not None and data.bias is not None:
        layer.weight.copy_(data.weight)
        layer.bias.copy_(data.bias)
    before = copy.deepcopy(layer.state_dict())
    mean, var = layer.running_mean, layer.running_var
    arrays = [None if t is None else t.double().numpy() for t in (data.weight, data.bias, data.residual)]
    settings = Settings(arrays[0], arrays[1], 1e-5, arrays[2], None, case.activation)
    x64, dy64 = data.x.double().numpy(), data.dy.double().numpy()

    x = data.x.requires_grad_()
    residual = None if data.residual is None else data.residual.requires_grad_()
    y = layer(x, residual=residual)
    found = gradients(y, data.dy, x, residual)
    peer = torch_batch_norm(x, mean, var, layer.weight, layer.bias, False, residual, case.activation)
    peers = gradients(peer, data.dy, x, residual)

    mean64, var64 = mean.double().numpy(), var.double().numpy()
    check(y, reference.inference(x64, mean64, var64, settings), peer)
    grads = reference.inference_backward(dy64, x64, mean64, var64, settings)
    for ours, theirs, expected in zip(found, peers, (grads.x, grads.residual), strict=True):
        if ours is not None:
            check(ours, expected, theirs)
    agree(dict(layer.state_dict()), dict(before), rtol=0, atol=0)


def test_a_freeze_that_survives_train() -> None:
    """torch's layer with its tracking switched off normalizes by the batch again, and differs from eval by far."""
    theirs, _ = twins()
    x = normal(4, 3, 5, 6) + torch.tensor([0.0, 10, 20], dtype=DOUBLE).reshape(3, 1, 1)
    frozen, expected = sn.FrozenBatchNorm.from_batch_norm(theirs), theirs.eval()(x)
    theirs.track_running_stats = False
    assert (theirs.train()(x) - expected).abs().max() > 5
    for training in (True, False):
        agree(nn.Sequential(frozen).train(training)(x), expected)


def test_nothing_finds_it() -> None:
    """No parameters; what resets or converts batch normalization passes it by, as do hold and guard."""
    frozen = frozen_layer()
    model = nn.Sequential(nn.Conv2d(3, 3, 1), frozen, sn.BatchNorm2d(3)).double()
    before = copy.deepcopy(frozen.state_dict())
    assert not list(frozen.parameters())
    update_bn([normal(4, 3, 5, 5)], model)
    with sn.hold_statistics(model), sn.guard_statistics(model):
        model(normal(4, 3, 5, 5))
    model.requires_grad_(True)
    assert nn.SyncBatchNorm.convert_sync_batchnorm(model).get_submodule("1") is frozen
    agree(dict(frozen.state_dict()), dict(before), rtol=0, atol=0)


# ---- from a layer, and state dicts ----


@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"bias": False}, {"momentum": None}], ids=str)
@pytest.mark.parametrize("kind", ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d"])
@MODES
def test_from_batch_norm_and_back(kind: str, settings: dict[str, Any], training: bool) -> None:
    """Torch's and ours: a copy in their mode; strict state dicts both ways."""
    shape = {"BatchNorm1d": (5, 3), "BatchNorm2d": (5, 3, 4, 4), "BatchNorm3d": (5, 3, 2, 4, 4)}[kind]
    x = normal(*shape)
    for layer in twins(kind, **settings):
        layer(normal(*shape, seed=1))
        frozen = sn.FrozenBatchNorm.from_batch_norm(layer.train(training))
        assert frozen.training == training
        agree_in_state(frozen, layer, rtol=0, atol=0)
        agree(frozen(x), layer.eval()(x))
        known = {name: value for name, value in settings.items() if name != "momentum"}
        loaded = sn.FrozenBatchNorm(3, dtype=DOUBLE, **known)
        loaded.load_state_dict(layer.state_dict(), strict=True)
        back = type(layer)(3, dtype=DOUBLE, **settings)
        back.load_state_dict(loaded.state_dict(), strict=True)
        agree_in_state(back, layer, rtol=0, atol=0)
        frozen.running_mean.add_(1)
        assert not torch.equal(layer.running_mean, frozen.running_mean)  # type: ignore[arg-type]


def test_from_a_relative() -> None:
    """The activation goes with it."""
    ghosts = sn.GhostBatchNorm2d(3, 2, eps=0.1, activation="leaky_relu", negative_slope=0.3)
    ghosts(normal(6, 3, 2, 2, dtype=torch.float32))
    frozen = sn.FrozenBatchNorm.from_batch_norm(ghosts)
    assert repr(frozen) == "FrozenBatchNorm(3, eps=0.1, affine=True, activation='leaky_relu', negative_slope=0.3)"
    x = normal(6, 3, 2, 2, dtype=torch.float32)
    agree(frozen(x), ghosts.eval()(x), rtol=0, atol=0)


def test_state_dict_without_a_count() -> None:
    """As torchvision's frozen layers and torch's old checkpoints have them."""
    frozen = frozen_layer()
    state = {name: value for name, value in frozen.state_dict().items() if name != "num_batches_tracked"}
    sn.FrozenBatchNorm(3, dtype=DOUBLE).load_state_dict(state, strict=True)
    with pytest.raises(RuntimeError, match=r"Missing key.*running_var"):
        sn.FrozenBatchNorm(3).load_state_dict({name: state[name] for name in state if name != "running_var"})


# ---- masks, dtypes, compilers ----


def test_masks() -> None:
    """nan where nothing is real reaches neither output nor gradient."""
    frozen, mask = frozen_layer(activation="silu"), torch.tensor([4, 0, 7, 2])
    x, residual = (normal(4, 3, 7, seed=seed) for seed in (0, 1))
    real = (torch.arange(7) < mask.unsqueeze(1)).unsqueeze(1)
    hidden = [torch.where(real, t, torch.nan).requires_grad_() for t in (x, residual)]
    y = frozen(hidden[0], mask=mask, residual=hidden[1])
    agree(y, torch.where(real, frozen(x, residual=residual), 0))
    for grad in torch.autograd.grad(y, hidden, torch.ones_like(y)):
        agree(grad == 0, ~real.expand_as(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype) -> None:
    """Buffers stay float32, however the cast is made; 16-bit checkpoints are widened."""
    x = normal(4, 3, 5, 5, dtype=dtype)
    for layer in (sn.FrozenBatchNorm(3, dtype=dtype), sn.FrozenBatchNorm(3).to(dtype)):
        assert {t.dtype for t in layer.state_dict().values()} == {torch.float32, torch.int64}
        y = layer(x)
        assert y.dtype == dtype
    layer.load_state_dict({k: v.to(dtype) for k, v in layer.state_dict().items()}, assign=True)
    assert layer.running_var.dtype == torch.float32


def test_derivatives() -> None:
    frozen = frozen_layer(activation="tanh")
    x, residual = (normal(2, 3, 2, seed=seed).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda x, r: frozen(x, residual=r), (x, residual))
    assert torch.autograd.gradgradcheck(lambda x, r: frozen(x, residual=r), (x, residual))


@MODES
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(training: bool, dynamic: bool) -> None:
    frozen = frozen_layer(activation="relu").train(training)
    compiled: Any = torch.compile(copy.deepcopy(frozen), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (4, 7):
        found = []
        for call in (compiled, frozen):
            x = normal(size, 3, 2, 3).requires_grad_()
            y = call(x, mask=normal(size, 2, 3) > 1, residual=x)
            found.append([y, *torch.autograd.grad(y, x, normal(*y.shape, seed=3))])
        agree(*found)


def test_copies_and_graphs() -> None:
    """pickle, deepcopy, and torch.fx, which keeps the layer whole."""
    model, x = nn.Sequential(nn.Identity(), frozen_layer(activation="relu")), normal(4, 3, 5, 5)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.fx.symbolic_trace(model)):
        agree(twin(x), model(x), rtol=0, atol=0)
        assert isinstance(twin.get_submodule("1"), sn.FrozenBatchNorm)


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 6), (2, 3, 4, 5, 6)], ids=str)
def test_any_shape_in_channels_last(shape: tuple[int, ...]) -> None:
    frozen, x = frozen_layer(), normal(*shape).movedim(1, -1).contiguous().movedim(-1, 1).requires_grad_()
    y = frozen(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.stride() == dx.stride() == x.stride()


# ---- refusals ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_features": -1}, "FrozenBatchNorm: expected num_features >= 0, got -1"),
        ({"eps": -1.0}, "FrozenBatchNorm: expected eps >= 0, got -1"),
        ({"activation": "mish"}, "FrozenBatchNorm: expected activation None or one of relu, .* got 'mish'"),
    ],
    ids=str,
)
def test_settings_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, RuntimeError), match=message) as info:
        sn.FrozenBatchNorm(**{"num_features": 3, **settings})
    assert isinstance(info.value, sn.SteadynormError)


def test_layers_that_cannot_be_frozen() -> None:
    with pytest.raises(ValueError, match=r"from_batch_norm: expected a batch normalization layer, got Linear\."):
        sn.FrozenBatchNorm.from_batch_norm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"with running_mean and running_var, got BatchNorm1d\(2, .*\) without them"):
        sn.FrozenBatchNorm.from_batch_norm(nn.BatchNorm1d(2, track_running_stats=False))
    with pytest.raises(ValueError, match=r"got WhiteningBatchNorm\(2, .* without them"):
        sn.FrozenBatchNorm.from_batch_norm(sn.WhiteningBatchNorm(2))


def test_inputs_refused() -> None:
    frozen = sn.FrozenBatchNorm(3)
    for x, error, message in (
        (torch.randn(3), ValueError, r"expected an input \(N, C, \*\), got 1-D"),
        (torch.randn(2, 4), RuntimeError, "expected running_mean with one value for each of the 4 channels"),
        (torch.ones(2, 3, dtype=torch.int64), NotImplementedError, "expected a floating-point input"),
    ):
        with pytest.raises(error, match=rf"FrozenBatchNorm\(num_features=3\): {message}"):
            frozen(x)
