"""reduce_statistics_: on all ranks, the statistics of all of their data."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steadynorm as sn
from steadynorm.moments import Moments
from steadynorm.statistics.reduce import Change

from ..support.launch import launch, outcomes_of
from ..support.refusals import expect_unchanged
from ..support.twins import agree, normal

BATCHES = (1, 3, 0)
"""How many batches each of three ranks has seen."""


def model_of(rank: int) -> nn.Sequential:
    """Layers of both kinds, with the plain average of a rank's batches, whose means are far from the other ranks'."""
    layers = [kind(3, momentum=None, affine=False) for kind in (sn.BatchNorm1d, nn.BatchNorm1d)]
    model = nn.Sequential(*layers, sn.BatchNorm1d(3, track_running_stats=False), layers[0]).double()
    for batch in range(BATCHES[rank]):
        for layer in layers:
            layer(batch_of(rank, batch))
    return model


def batch_of(rank: int, batch: int) -> Tensor:
    return normal(50, 3, seed=10 * rank + batch) + 100 * rank


def buffers(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def on_three(rank: int) -> dict[str, Any]:
    by_count, by_weight, without = model_of(rank), model_of(rank), model_of(rank)
    before = buffers(by_count)
    found: dict[str, Any] = {
        "before": before,
        "changes": {name: tuple(change) for name, change in sn.reduce_statistics_(by_count).items()},
        "by count": buffers(by_count),
    }
    if rank == 2:  # a rank without data may hold anything
        by_weight.get_buffer("0.running_mean").fill_(torch.nan)
    sn.reduce_statistics_(by_weight, weight=(3, 1, 0)[rank])
    found["by weight"] = buffers(by_weight)
    found["nothing"] = sn.reduce_statistics_(nn.Sequential(sn.BatchNorm1d(3, track_running_stats=False)))

    def refused(name: str, model: nn.Module, **settings: Any) -> None:
        with pytest.raises(ValueError) as info:
            sn.reduce_statistics_(model, **settings)
        assert isinstance(info.value, sn.SteadynormError)
        found[name] = str(info.value)

    expect_unchanged(without, lambda: refused("weightless", without, weight=0))
    expect_unchanged(without, lambda: refused("negative", without, weight=-1.0))
    expect_unchanged(without, lambda: refused("nan", without, weight=float("nan")))
    expect_unchanged(without, lambda: refused("differing", without[: 1 + rank]))
    without[1].num_batches_tracked = None  # type: ignore[assignment]
    expect_unchanged(without, lambda: refused("uncounted", without))
    return found


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return launch(on_three, 3)


@pytest.mark.parametrize("way", ["by count", "by weight"])
@pytest.mark.parametrize("layer", ["0", "1"])
def test_total_variance(way: str, layer: str, found: list[dict[str, Any]]) -> None:
    """By the formula, from what each rank had before; the same on all ranks, whatever one without data had."""
    shares = {"by count": (0.25, 0.75), "by weight": (0.75, 0.25)}[way]
    means, variances = ([of["before"][f"{layer}.running_{kind}"] for of in found[:2]] for kind in ("mean", "var"))
    mean = sum(share * m for share, m in zip(shares, means, strict=True))
    var = sum(s * (v + (m - mean).square()) for s, m, v in zip(shares, means, variances, strict=True))
    for of_rank, count in zip(found, BATCHES, strict=True):
        ours = of_rank[way]
        agree((ours[f"{layer}.running_mean"], ours[f"{layer}.running_var"]), (mean, var))
        assert ours[f"{layer}.num_batches_tracked"] == count


def test_close_to_all_data_and_far_from_the_mean_of_variances(found: list[dict[str, Any]]) -> None:
    """Ranks 100 apart: the variance of all data is about 1,900, that of each rank 9."""
    batches = [batch_of(rank, batch) for rank in range(3) for batch in range(BATCHES[rank])]
    var = Moments.from_data(torch.cat(batches)).var_unbiased
    ours = found[0]["by count"]["0.running_var"]
    assert ((ours / var - 1).abs() < 0.02).all()
    assert (found[0]["before"]["0.running_var"] < 20).all()


def test_says_what_changed(found: list[dict[str, Any]]) -> None:
    for of_rank in found:
        assert list(of_rank["changes"]) == ["0", "1"]
        change = Change(*of_rank["changes"]["0"])
        old, new = of_rank["before"], of_rank["by count"]
        agree((change.old_mean, change.old_var), (old["0.running_mean"], old["0.running_var"]))
        agree((change.mean, change.var), (new["0.running_mean"], new["0.running_var"]))
        assert of_rank["nothing"] == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weightless", "expected a rank with a weight above 0 for '0', got none"),
        ("negative", r"expected a finite weight >= 0, got -1\.0"),
        ("nan", "expected a finite weight >= 0, got nan"),
        ("differing", "expected the same layers on every rank, got {'0': 3"),
        ("uncounted", "got '1' without num_batches_tracked"),
    ],
)
def test_refused_on_every_rank_with_nothing_changed(name: str, message: str, found: list[dict[str, Any]]) -> None:
    for of_rank in found:
        assert re.search(message, of_rank[name])


def test_without_a_process_group() -> None:
    model = model_of(0)
    with pytest.raises(RuntimeError, match="no process group") as info:
        expect_unchanged(model, lambda: sn.reduce_statistics_(model))
    assert isinstance(info.value, sn.SteadynormError)


def left_alone(rank: int) -> str:
    if rank == 1:
        os._exit(1)
    model = model_of(0)
    with pytest.raises(RuntimeError) as info:
        expect_unchanged(model, lambda: sn.reduce_statistics_(model))
    assert isinstance(info.value, sn.SteadynormError)
    return str(info.value)


def test_a_dead_rank() -> None:
    alone, _ = outcomes_of(left_alone, 2)
    assert alone.error is None, alone.error
    assert alone.result.startswith("reduce_statistics_: the ranks could not exchange their statistics: ")
