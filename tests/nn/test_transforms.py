"""Layers under torch.func: examples mapped, models stacked, gradients of a whole model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

import steadynorm as sn
from steadynorm.errors import BatchedStatisticsError

from ..support.marks import TORCH_JIT_WARNS
from ..support.twins import agree, normal

LIBRARIES = pytest.mark.parametrize("library", [torch.nn, sn.nn], ids=["torch", "steadynorm"])
State = dict[str, Tensor]


def build(library: ModuleType, seed: int = 0, track: bool = True) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False),
        library.BatchNorm2d(3, track_running_stats=track),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(3 * 4 * 4, 2),
        library.BatchNorm1d(2, track_running_stats=track),
    ).double()


def state_of(model: torch.nn.Module) -> tuple[State, State]:
    return dict(model.named_parameters()), dict(model.named_buffers())


def loss_of(model: torch.nn.Module) -> Callable[[State, State, Tensor], Tensor]:
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64)

    def loss(parameters: State, buffers: State, x: Tensor) -> Tensor:
        return (functional_call(model, (parameters, buffers), (x,)).sin() * weight).sum()

    return loss


@LIBRARIES
def test_examples_cannot_share_running_statistics(library: ModuleType) -> None:
    """torch raises a RuntimeError; ours is one too, names the layer and the ways out, and changes nothing."""
    model = build(library)
    before = copy.deepcopy(model.state_dict())
    error = BatchedStatisticsError if library is sn.nn else RuntimeError
    message = "track_running_stats"
    if library is sn.nn:
        message = r"BatchNorm2d\(num_features=3\): expected running statistics for each of vmap's .*track_running_stats"
    with pytest.raises(error, match=message) as info:
        vmap(model)(normal(3, 4, 2, 6, 6))
    assert isinstance(info.value, RuntimeError)
    if library is sn.nn:
        agree(dict(model.state_dict()), dict(before), rtol=0, atol=0)


@LIBRARIES
@pytest.mark.parametrize("training", [True, False], ids=["not tracking", "eval"])
def test_examples_without_running_statistics(library: ModuleType, training: bool) -> None:
    """Each mapped batch by its own statistics, or all by the running ones."""
    model = build(library, track=not training).train(training)
    batches = normal(3, 4, 2, 6, 6)
    agree(vmap(model)(batches), torch.stack([model(x) for x in batches]))


@LIBRARIES
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_stacked_models(library: ModuleType, training: bool) -> None:
    """Output, and running statistics of each, are those of a loop over the models."""
    models = [build(library, seed).train(training) for seed in range(3)]
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    base = copy.deepcopy(models[0]).to("meta")
    x = normal(4, 2, 6, 6)

    def call(parameters: State, buffers: State, x: Tensor) -> Tensor:
        return functional_call(base, (parameters, buffers), (x,))

    together = vmap(call, in_dims=(0, 0, None))(parameters, buffers, x)
    agree(together, torch.stack([model(x) for model in models]))
    for index, model in enumerate(models):
        agree({name: b[index] for name, b in buffers.items()}, dict(model.named_buffers()))
    assert buffers["1.num_batches_tracked"].tolist() == [1 if training else 0] * 3


@LIBRARIES
def test_gradients_of_stacked_models(library: ModuleType) -> None:
    """Gradients of every model by one call, running statistics moved once by it."""
    models = [build(library, seed) for seed in range(3)]
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    batches = normal(3, 4, 2, 6, 6)
    together = vmap(grad(loss_of(copy.deepcopy(models[0]).to("meta"))))(parameters, buffers, batches)
    for index, (model, x) in enumerate(zip(models, batches, strict=True)):
        alone, own = state_of(model)
        expected = torch.autograd.grad(loss_of(model)(alone, own, x), list(alone.values()))
        agree([g[index] for g in together.values()], list(expected))
        agree({name: b[index] for name, b in buffers.items()}, own)


@LIBRARIES
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_grad_through_a_model(library: ModuleType, training: bool) -> None:
    """`torch.func.grad`, parameters and buffers passed in, is autograd's gradient; statistics move as always."""
    model = build(library).train(training)
    plain = copy.deepcopy(model)
    x = normal(4, 2, 6, 6)
    parameters, buffers = state_of(model)
    found = grad(loss_of(model))(parameters, buffers, x)
    alone, own = state_of(plain)
    expected = torch.autograd.grad(loss_of(plain)(alone, own, x), list(alone.values()))
    agree(list(found.values()), list(expected))
    agree(buffers, own)


@LIBRARIES
def test_captured_statistics_cannot_move_inside_a_transform(library: ModuleType) -> None:
    """Running statistics that are not passed in: torch.func refuses, naming no layer but the cause."""
    model = build(library)
    before = copy.deepcopy(model.state_dict())
    x = normal(4, 2, 6, 6)
    with pytest.raises(RuntimeError, match="mutate a captured Tensor"):
        grad(lambda x: model(x).sum())(x)
    agree(dict(model.state_dict()), dict(before), rtol=0, atol=0)
    model.eval()
    assert grad(lambda x: model(x).sum())(x).abs().max() > 0


def test_examples_gradients_in_eval() -> None:
    """Per-example gradients, as differential privacy takes them, equal torch's and a loop's."""
    model, twin = build(sn.nn).eval(), build(torch.nn).eval()
    twin.load_state_dict(model.state_dict())
    parameters, buffers = state_of(model)
    examples = normal(5, 1, 2, 6, 6)
    ours, theirs = (
        vmap(grad(loss_of(m)), in_dims=(None, None, 0))(parameters, buffers, examples) for m in (model, twin)
    )
    agree(ours, theirs)
    for index, x in enumerate(examples):
        agree({k: g[index] for k, g in ours.items()}, grad(loss_of(model))(parameters, buffers, x))


@TORCH_JIT_WARNS
@LIBRARIES
@pytest.mark.parametrize("training", [True, False], ids=["not tracking", "eval"])
def test_forward_mode_through_a_model(library: ModuleType, training: bool) -> None:
    """jvp is the gradient times the direction."""
    model = build(library, track=not training).train(training)
    x, direction = normal(4, 2, 6, 6).requires_grad_(), normal(4, 2, 6, 6, seed=1)
    (gradient,) = torch.autograd.grad(model(x).sin().sum(), x)
    slope = jvp(lambda x: model(x).sin().sum(), (x.detach(),), (direction,))[1]
    agree(slope.detach(), (gradient * direction).sum())
