"""GhostBatchNorm as a layer: statistics under control, checkpoints, compilers, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.checkpoint import checkpoint

import steadynorm as sn

from ..support.refusals import expect_unchanged
from ..support.twins import agree, agree_in_state, normal

DOUBLE = torch.float64


def pair(**settings: Any) -> tuple[Any, Any]:
    """Ghosts of 4, and BatchNorm2d, of three channels in float64."""
    return sn.GhostBatchNorm2d(3, 4, dtype=DOUBLE, **settings), sn.BatchNorm2d(3, dtype=DOUBLE, **settings)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


# ---- statistics ----


@pytest.mark.parametrize("momentum", [0.3, None])
def test_statistics_move_once_a_batch(momentum: float | None) -> None:
    ghosts, plain = pair(momentum=momentum)
    for seed, size in enumerate((12, 0, 9, 3)):
        x = normal(size, 3, 2, 3, seed=seed)
        ghosts(x)
        plain(x)
        agree_in_state(ghosts, plain)
    assert ghosts.num_batches_tracked == 4


def test_held_guarded_and_accumulated() -> None:
    ghosts, plain = pair()
    before = copy.deepcopy(ghosts.state_dict())
    with sn.hold_statistics(ghosts):
        ghosts(normal(12, 3, 2, 3))
    agree(dict(ghosts.state_dict()), dict(before), rtol=0, atol=0)
    poisoned = normal(12, 3, 2, 3)
    poisoned[0, 0] = torch.inf
    with sn.guard_statistics(ghosts) as guard, pytest.warns(sn.NonFiniteStatisticsWarning, match="guard_statistics"):
        ghosts(poisoned)
    assert guard.kept_out == {"": 1}
    agree(dict(ghosts.state_dict()), dict(before), rtol=0, atol=0)
    x = normal(20, 3, 2, 3)
    with sn.accumulate_statistics(ghosts, 2):
        ghosts(x[:9])
        ghosts(x[9:])
    plain(x)
    agree_in_state(ghosts, plain)


def test_a_poisoned_batch_warns() -> None:
    layer, _ = pair()
    with pytest.warns(sn.NonFiniteStatisticsWarning, match=r"GhostBatchNorm2d\(num_features=3\): the batch's mean or"):
        layer(torch.full((8, 3, 2, 2), torch.nan, dtype=DOUBLE))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_moves_statistics_once(reentrant: bool) -> None:
    once, again = pair()[0], pair()[0]
    x = normal(10, 3, 2, 3)
    found = []
    for layer in (once, again):
        leaf = x.clone().requires_grad_()
        y = layer(leaf) if layer is once else checkpoint(layer, leaf, use_reentrant=reentrant)
        found.append(torch.autograd.grad(y.square().sum(), leaf) if not reentrant else y.square().sum().backward())
    agree_in_state(again, once)
    if not reentrant:
        agree(found[1], found[0])


def test_one_value_by_the_running_statistics() -> None:
    """Every ghost of one value; and one ghost of which the mask leaves one."""
    layer = sn.GhostBatchNorm1d(3, 1, dtype=DOUBLE, single_value="running", activation="tanh")
    assert layer.running_mean is not None
    layer.running_mean.fill_(2)
    x, before = normal(4, 3), copy.deepcopy(layer.state_dict())
    agree(layer(x), copy.deepcopy(layer).eval()(x))
    agree(dict(layer.state_dict()), dict(before), rtol=0, atol=0)

    layer = sn.GhostBatchNorm1d(3, 2, dtype=DOUBLE, single_value="running")
    x, lengths = normal(4, 3, 5), torch.tensor([3, 2, 0, 1])
    twin, single = sn.BatchNorm1d(3, dtype=DOUBLE), copy.deepcopy(layer).eval()
    y = layer(x, mask=lengths)
    agree(y, torch.cat([twin(x[:2], mask=lengths[:2]), single(x[2:], mask=lengths[2:])]))
    agree_in_state(layer, twin)


# ---- a layer among others ----


@pytest.mark.parametrize(("kind", "shape"), [("1d", (5, 3)), ("2d", (5, 3, 2, 2)), ("3d", (5, 3, 2, 2, 2))])
def test_checkpoints_both_ways(kind: str, shape: tuple[int, ...]) -> None:
    """torch's state dict in, ours out, strictly; and copies give the same output."""
    theirs = getattr(torch.nn, f"BatchNorm{kind}")(3, dtype=DOUBLE)
    layer = getattr(sn, f"GhostBatchNorm{kind}")(3, 2, dtype=DOUBLE)
    theirs(normal(*shape))
    layer.load_state_dict(theirs.state_dict(), strict=True)
    agree(layer.eval()(normal(*shape)), theirs.eval()(normal(*shape)))
    layer.train()(normal(*shape, seed=1))
    theirs.load_state_dict(layer.state_dict(), strict=True)
    agree_in_state(layer, theirs)
    twin = copy.deepcopy(layer)
    assert isinstance(twin, type(theirs))
    agree(twin.train()(normal(*shape)), layer.train()(normal(*shape)))


def test_repr() -> None:
    expected = "GhostBatchNorm2d(3, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True"
    assert repr(sn.GhostBatchNorm2d(3, 8)) == f"{expected}, virtual_batch_size=8)"


@pytest.mark.parametrize("examples", [8, 10], ids=["even", "a smaller last"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled(examples: int, dynamic: bool) -> None:
    layer = pair(activation="relu")[0]
    compiled: Any = torch.compile(copy.deepcopy(layer), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for seed, size in enumerate((examples, examples + 4)):
        mask, found = torch.rand(size, 2, 3, generator=torch.Generator().manual_seed(seed)) < 0.8, []
        for call in (compiled, layer):
            x = normal(size, 3, 2, 3, seed=seed).requires_grad_()
            y = call(x, mask=mask)
            found.append([y, *torch.autograd.grad(y, x, normal(*y.shape, seed=3))])
        agree(*found)
    agree(dict(compiled._orig_mod.state_dict()), dict(layer.state_dict()))


def test_stacked_models() -> None:
    """vmap over models gives each its output and its running statistics."""
    models = [torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), sn.GhostBatchNorm2d(3, 2)).double() for _ in range(3)]
    parameters, buffers = stack_module_state(models)  # type: ignore[arg-type]
    base, x = copy.deepcopy(models[0]).to("meta"), normal(5, 2, 2, 2)
    together = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
    agree(together, torch.stack([model(x) for model in models]))
    for index, model in enumerate(models):
        agree({name: b[index] for name, b in buffers.items()}, dict(model.named_buffers()))


# ---- refusals ----


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "8", None])
def test_sizes_refused(size: Any) -> None:
    with pytest.raises(ValueError, match=r"virtual_batch_size to be an int > 0, got .*\. It is the number of") as info:
        sn.GhostBatchNorm2d(3, size)
    assert isinstance(info.value, sn.SteadynormError)
    layer = pair()[0]
    layer.virtual_batch_size = size

    def call() -> None:
        with pytest.raises(ValueError, match=r"GhostBatchNorm2d\(num_features=3\): expected virtual_batch_size"):
            layer(normal(8, 3, 2, 2))

    expect_unchanged(layer, call)


def test_ghosts_of_one_value_refused() -> None:
    layer = sn.GhostBatchNorm1d(3, 1)

    def dense() -> None:
        message = (
            r"more than 1 value per channel in each ghost .* ghosts of 1 of the 4 examples .* a single value\. Use"
        )
        with pytest.raises(ValueError, match=message):
            layer(torch.randn(4, 3))

    def masked() -> None:
        with pytest.raises(ValueError, match=r"ghosts of 1 of the 4 examples of shape \(3, 5\), .* single real value"):
            layer(torch.randn(4, 3, 5), mask=torch.tensor([3, 1, 2, 2]))

    expect_unchanged(layer, dense)
    expect_unchanged(layer, masked)


def test_other_input_refused_as_by_batch_norm() -> None:
    layer = sn.GhostBatchNorm2d(3, 2)
    for x, message in (
        (torch.randn(6, 3, 4), "expected a 4-D input"),
        (torch.randn(6, 4, 2, 2), "for each of the 4 channels"),
        (torch.randn(6, 3, 2, 2).double(), "expected running_mean of the input's dtype"),
    ):
        with pytest.raises((ValueError, RuntimeError), match=rf"GhostBatchNorm2d\(num_features=3\): .*{message}"):
            layer(x)
    layer.eps = 0.0
    with pytest.raises(ValueError, match="expected eps > 0 in training"):
        layer(torch.randn(6, 3, 2, 2))
    layer.eps, layer.running_var = 1e-5, None
    with pytest.raises(ValueError, match="running_mean and running_var both or neither"):
        layer(torch.randn(6, 3, 2, 2))
    assert layer.num_batches_tracked == 0
