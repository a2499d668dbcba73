"""recalibrate_ over ranks: the statistics of all ranks' data on each of them, or an error on each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadynorm as sn

from ..support.launch import launch
from ..support.refusals import expect_unchanged
from ..support.twins import agree, normal

SIZES = ((20, 1, 7), (3,), ())
"""Batches of three ranks: other sizes, other numbers, none."""


def batches_of(rank: int) -> list[Tensor]:
    return [normal(size, 3, seed=10 * rank + number) + 50 * rank for number, size in enumerate(SIZES[rank])]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = sn.SyncBatchNorm(3)  # would wait for the other ranks, were it in train mode
        self.linear = nn.Linear(3, 4)
        self.second = nn.BatchNorm1d(4)
        self.white = sn.WhiteningBatchNorm(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.white(self.second(torch.tanh(self.linear(self.first(x)))))


class Ways(nn.Module):
    """A layer that is behind itself, with one in between that only some batches, on some ranks, reach."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.last = nn.BatchNorm1d(3)
        self.linear = nn.Linear(3, 3)
        self.detour = nn.BatchNorm1d(3)
        self.shared = sn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.shared(x))
        if len(x) > 5:
            x = self.detour(x.square())
        return self.last(self.shared(self.linear(x)).sigmoid())


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def on_three(rank: int) -> dict[str, Any]:
    data, found = batches_of(rank), {}
    plain, sequential, wrapped = Net().double(), Net().double(), Net().double()
    shifts = sn.recalibrate_(plain, data)
    found["count"], found["batches"] = shifts["first"].count, shifts.batches
    found["plain"] = state_of(plain)
    sn.recalibrate_(sequential, data, sequential=True)
    found["sequential"] = state_of(sequential)
    ways = Ways().double()
    sn.recalibrate_(ways, data, sequential=True)
    found["ways"] = state_of(ways)
    parallel = nn.parallel.DistributedDataParallel(wrapped)
    assert list(sn.recalibrate_(parallel, data)) == ["first", "second", "white"]
    found["wrapped"] = state_of(wrapped)
    adapted = Net().double()
    sn.adapt_(adapted, data, weight=0.25)
    found["adapted"] = state_of(adapted)
    own: Any = torch.distributed.new_group([rank], use_local_synchronization=True)
    if data:
        alone = Net().double()
        sn.recalibrate_(alone, data, process_group=own)
        found["alone"] = state_of(alone)
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return launch(on_three, 3)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("way", ["plain", "sequential"])
def test_all_ranks_have_the_statistics_of_one_process_with_all_data(way: str, found: list[dict[str, Any]]) -> None:
    expected = Net().double()
    data = [batch for rank in range(3) for batch in batches_of(rank)]
    sn.recalibrate_(expected, data, sequential=way == "sequential")
    for of_rank in found:
        for name, value in expected.state_dict().items():
            agree(of_rank[way][name], value, rtol=1e-9, atol=1e-12)
        same(of_rank[way], found[0][way])
    everything = torch.cat(data)
    agree(found[2][way]["first.running_mean"], everything.mean(0))
    agree(found[2][way]["first.running_var"], everything.var(0))
    assert found[2][way]["first.num_batches_tracked"] == 4


def test_layers_that_are_used_several_times_and_not_on_all_ranks(found: list[dict[str, Any]]) -> None:
    expected = Ways().double()
    sn.recalibrate_(expected, [batch for rank in range(3) for batch in batches_of(rank)], sequential=True)
    for of_rank in found:
        for name, value in expected.state_dict().items():
            agree(of_rank["ways"][name], value, rtol=1e-8, atol=1e-8)
        same(of_rank["ways"], found[0]["ways"])


def test_counts(found: list[dict[str, Any]]) -> None:
    assert [of_rank["batches"] for of_rank in found] == [3, 1, 0]
    assert all(of_rank["count"].tolist() == [31] * 3 for of_rank in found)


def test_wrapped_models_and_groups(found: list[dict[str, Any]]) -> None:
    for rank, of_rank in enumerate(found):
        same(of_rank["wrapped"], found[0]["plain"])
        if batches_of(rank):
            agree(of_rank["alone"]["first.running_mean"], torch.cat(batches_of(rank)).mean(0))


def test_adapted(found: list[dict[str, Any]]) -> None:
    everything = torch.cat([batch for rank in range(3) for batch in batches_of(rank)])
    for of_rank in found:
        agree(of_rank["adapted"]["first.running_mean"], 0.25 * everything.mean(0))
        agree(of_rank["adapted"]["first.running_var"], 0.75 + 0.25 * everything.var(0))


class Fewer:
    """Data that are fewer the second time, on rank 1."""

    def __init__(self, batches: list[Tensor], rank: int) -> None:
        self.batches, self.rank = batches, rank

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.batches
        if self.rank == 1:
            del self.batches[1:]


def on_two_that_fail(rank: int) -> dict[str, str]:
    model, messages = Net().double(), {}
    x = normal(6, 3)

    def breaks(at: int) -> Any:
        left = [at]

        def call(model: nn.Module, batch: Tensor) -> None:
            left[0] -= 1
            if rank == 1 and left[0] == 0:
                raise ZeroDivisionError("theirs")
            model(batch)

        return call

    def attempt(name: str, data: Any, **settings: Any) -> None:
        def call() -> None:
            with pytest.raises((ValueError, RuntimeError, ZeroDivisionError)) as info:
                sn.recalibrate_(model, data, **settings)
            messages[name] = str(info.value)

        expect_unchanged(model, call)

    attempt("in the first pass", [x, x], call=breaks(2))
    attempt("in a later pass", [x, x], call=breaks(3), sequential=True)
    attempt("fewer in a later pass", Fewer([x, x], rank), sequential=True)
    attempt("no data", [])
    attempt("one has inf", [x + (torch.inf if rank == 1 else 0)])
    attempt("iterator", iter([x]) if rank == 1 else [x], sequential=True)
    attempt("settings", [x], estimator=("pooled", "paper")[rank])
    attempt("batches", [x], batches=0 if rank == 1 else None)
    other = nn.Sequential(sn.BatchNorm1d(3)).double()
    with pytest.raises(ValueError, match="expected the same model and settings on every rank"):
        sn.recalibrate_(model if rank == 1 else other, [x])
    sn.recalibrate_(model, [x])  # and all are still in step
    return messages


def test_what_one_rank_raises_ends_all_with_nothing_changed() -> None:
    first, second = launch(on_two_that_fail, 2)
    of_rank_1 = {
        "in the first pass": "theirs",
        "in a later pass": "theirs",
        "fewer in a later pass": "the same batches in each pass with sequential=True, got 2 in the first and 1",
        "iterator": "again and again with sequential=True",
        "batches": "expected batches >= 1",
    }
    for name, message in of_rank_1.items():
        assert message in second[name]
        assert first[name].startswith("recalibrate_: rank 1 raised an error")
    of_all = {
        "no data": "expected data with at least one batch, got none",
        "one has inf": "expected finite data, got a mean or variance at 'first'",
        "settings": "expected the same model and settings on every rank",
    }
    for name, message in of_all.items():
        assert message in first[name]
        assert message in second[name]
