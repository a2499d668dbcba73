"""What SyncBatchNorm does beside normalizing: one value a channel, running statistics, groups, modes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import steadynorm as sn

from ..support.launch import launch
from ..support.refusals import expect_unchanged
from ..support.twins import agree, normal

Found = dict[str, tuple[Any, ...]]
SPLIT = {0: slice(0, 2), 1: slice(2, 7)}
"""Which of seven examples each of two ranks has."""


def sync(**settings: Any) -> sn.SyncBatchNorm:
    return sn.SyncBatchNorm(3, dtype=torch.float64, **settings)


def plain(**settings: Any) -> sn.BatchNorm1d:
    return sn.BatchNorm1d(3, dtype=torch.float64, **settings)


def state(layer: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in layer.state_dict().items()}


def warnings_of(call: Callable[[], Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught if warning.category is sn.NonFiniteStatisticsWarning]


# ---- what two ranks do; each function gives what the tests below look at ----


def one_value(rank: int) -> tuple[str, bool]:
    """Rank 1 has no data, rank 0 one value a channel."""
    layer, x = sync(), normal(1 - rank, 3)
    with pytest.raises(ValueError) as info:
        expect_unchanged(layer, lambda: layer(x))
    return str(info.value), isinstance(info.value, sn.SteadynormError)


def one_value_by_the_running_statistics(rank: int) -> tuple[Any, ...]:
    layer = sync(single_value="running", activation="tanh")
    layer.running_mean.fill_(0.5)  # type: ignore[union-attr]
    x = normal(1 - rank, 3).requires_grad_()
    found = []
    for training in (True, False):
        y = layer.train(training)(x)
        found.append([y, *torch.autograd.grad(y.sum(), (x, layer.weight), retain_graph=True, create_graph=training)])
    (second,) = torch.autograd.grad(found[0][1].sum(), x)
    agree(found[0], found[1])
    return state(layer), second


def no_average_but_the_plain_one(rank: int) -> dict[str, Tensor]:
    layer = sync(momentum=None)
    for seed in range(3):
        layer(normal(7, 3, seed=seed)[SPLIT[rank]])
    return state(layer)


def without_running_statistics(rank: int) -> Tensor:
    layer, x = sync(track_running_stats=False), normal(7, 3)[SPLIT[rank]]
    y = layer(x)
    agree(layer.eval()(x), plain(track_running_stats=False)(x))  # in eval mode by this rank's own batch
    return y.detach()


def exchanges_nothing(rank: int) -> None:
    """Only rank 0 comes here: in eval mode, and backward where the input wants no gradient."""
    layer = sync()
    y = layer(normal(7, 3)[SPLIT[rank]])
    if rank == 0:
        y.sum().backward()
        layer.eval()(normal(2, 3))


def no_gradient_of_the_input(rank: int) -> list[Tensor]:
    layer, x = sync(activation="relu"), normal(7, 3)[SPLIT[rank]]
    residual = normal(7, 3, seed=1)[SPLIT[rank]].requires_grad_()
    y = layer(x, residual=residual)
    return list(torch.autograd.grad(y, (layer.weight, layer.bias, residual), normal(7, 3, seed=2)[SPLIT[rank]]))


def recomputed(rank: int, use_reentrant: bool) -> tuple[Any, ...]:
    """Activation checkpointing: the recomputation exchanges, too, and moves nothing."""
    layers = [torch.nn.Sequential(sync(), torch.nn.Tanh(), sync()) for _ in range(2)]
    found = []
    for layer, checkpoints in zip(layers, (False, True), strict=True):
        x = normal(7, 3)[SPLIT[rank]].requires_grad_()
        y = checkpoint(layer, x, use_reentrant=use_reentrant) if checkpoints else layer(x)
        assert isinstance(y, Tensor)
        y.square().sum().backward()
        found.append((y.detach(), x.grad, [p.grad for p in layer.parameters()], state(layer)))
    agree(found[1], found[0], rtol=0, atol=0)
    return found[1][3]


def not_finite(rank: int) -> tuple[list[str], dict[str, int], dict[str, Tensor]]:
    """One inf on rank 0: both ranks say so; with a guard, both keep it out."""
    x = normal(7, 3)[SPLIT[rank]]
    if rank == 0:
        x[0, 1] = torch.inf
    said = warnings_of(lambda: sync()(x))
    model = torch.nn.Sequential(sync())
    with sn.guard_statistics(model) as guard:
        warnings_of(lambda: model(x))
    return said, guard.kept_out, state(model)


def held_and_accumulated(rank: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    held, accumulated = torch.nn.Sequential(sync()), torch.nn.Sequential(sync())
    with sn.hold_statistics(held):
        held(normal(7, 3)[SPLIT[rank]])
    with sn.accumulate_statistics(accumulated, 2):
        for seed in range(2):
            accumulated(normal(7, 3, seed=seed)[SPLIT[rank]])
    return state(held), state(accumulated)


def wrong_channels(rank: int) -> str:
    with pytest.raises(RuntimeError) as info:
        sync(affine=False, track_running_stats=False)(normal(4, 2))
    return str(info.value)


ON_TWO = {
    "one value": one_value,
    "running": one_value_by_the_running_statistics,
    "momentum": no_average_but_the_plain_one,
    "not tracking": without_running_statistics,
    "nothing": exchanges_nothing,
    "no dx": no_gradient_of_the_input,
    "not finite": not_finite,
    "held": held_and_accumulated,
    "channels": wrong_channels,
}


def on_two(rank: int) -> dict[str, Any]:
    found = {name: function(rank) for name, function in ON_TWO.items()}
    return {**found, **{f"recomputed {way}": recomputed(rank, way) for way in (True, False)}}


def on_three(rank: int) -> dict[str, Any]:
    """Ranks 0 and 2 are a group, rank 1 another; each is told the other's name for it, too."""
    groups = [dist.new_group([0, 2]), dist.new_group([1])]
    mine, other = groups if rank != 1 else groups[::-1]
    layer = sync(process_group=mine)
    twin = copy.deepcopy(layer)
    assert twin.process_group is layer.process_group
    x = normal(9, 3)[3 * rank : 3 * rank + 3 - rank].requires_grad_()
    y = layer(x)
    (dx,) = torch.autograd.grad(y, x, normal(9, 3, seed=1)[3 * rank : 3 * rank + 3 - rank])
    agree(twin(x), y)
    with pytest.raises(ValueError) as info:
        sync(process_group=other)
    return {"y": y.detach(), "dx": dx, "state": state(layer), "other": str(info.value)}


@pytest.fixture(scope="module")
def found() -> Found:
    of_ranks = launch(on_two, 2)
    return {name: tuple(of_rank[name] for of_rank in of_ranks) for name in of_ranks[0]}


def test_one_value_over_all_ranks_is_refused(found: Found) -> None:
    """On both ranks, with nothing changed, so that none waits for the other."""
    for (message, is_ours), shape in zip(found["one value"], ("(1, 3)", "(0, 3)"), strict=True):
        assert message.startswith("SyncBatchNorm(num_features=3): expected more than 1 value per channel over all")
        assert shape in message
        assert is_ours


def test_one_value_by_the_running_statistics(found: Found) -> None:
    """Output and gradients are those of eval mode, and nothing moves."""
    for state_dict, second in found["running"]:
        assert state_dict["num_batches_tracked"] == 0
        assert (state_dict["running_mean"] == 0.5).all()
        assert second.isfinite().all()
    assert (found["running"][0][1] != 0).all()


def test_plain_average(found: Found) -> None:
    layer = plain(momentum=None)
    for seed in range(3):
        layer(normal(7, 3, seed=seed))
    for ours in found["momentum"]:
        agree(ours, state(layer))


def test_without_running_statistics(found: Found) -> None:
    agree(torch.cat(found["not tracking"]), plain()(normal(7, 3)).detach())


def test_no_gradient_of_the_input(found: Found) -> None:
    """The parameters' gradients sum to those of one process; the residual's are its parts."""
    layer, residual = plain(activation="relu"), normal(7, 3, seed=1).requires_grad_()
    y = layer(normal(7, 3), residual=residual)
    dweight, dbias, dresidual = torch.autograd.grad(y, (layer.weight, layer.bias, residual), normal(7, 3, seed=2))
    parts = list(zip(*found["no dx"], strict=True))
    agree([sum(parts[0]), sum(parts[1]), torch.cat(parts[2])], [dweight, dbias, dresidual])


@pytest.mark.parametrize("way", [True, False], ids=["reentrant", "not reentrant"])
def test_recomputation_moves_nothing(way: bool, found: Found) -> None:
    for ours in found[f"recomputed {way}"]:
        assert ours["0.num_batches_tracked"] == ours["2.num_batches_tracked"] == 1


def test_inf_on_one_rank(found: Found) -> None:
    for said, kept_out, kept in found["not finite"]:
        assert len(said) == 1
        assert said[0].startswith("SyncBatchNorm(num_features=3): the batch's mean or variance is not finite")
        assert kept_out == {"0": 1}
        agree(kept, {f"0.{name}": value for name, value in state(plain()).items()})


def test_held_and_accumulated(found: Found) -> None:
    model = torch.nn.Sequential(plain())
    for held, _ in found["held"]:
        agree(held, state(model))
    with sn.accumulate_statistics(model, 2):
        for seed in range(2):
            model(normal(7, 3, seed=seed))
    for _, accumulated in found["held"]:
        agree(accumulated, state(model))


def test_channels_are_looked_at_before_the_others_wait(found: Found) -> None:
    assert all("got an input of 2 channels, of shape (4, 2)" in message for message in found["channels"])


def test_groups() -> None:
    """Two ranks of three are one batch, the third is alone."""
    of_ranks = launch(on_three, 3)
    for members in ([0, 2], [1]):
        layer = plain()
        x, dy = (torch.cat([normal(9, 3, seed=s)[3 * r : 3 * r + 3 - r] for r in members]) for s in (0, 1))
        y = layer(x.requires_grad_())
        (dx,) = torch.autograd.grad(y, x, dy)
        for name, whole in (("y", y.detach()), ("dx", dx)):
            agree(torch.cat([of_ranks[rank][name] for rank in members]), whole)
        for rank in members:
            agree(of_ranks[rank]["state"], state(layer))
            assert "expected a process group that this rank is in" in of_ranks[rank]["other"]
