"""Clients' shares of the data, and rounds of federated averaging against ones written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadynorm import BatchNorm2d, NonFiniteStatisticsWarning
from steadynorm.records import DIVERGED
from steadynorm.study.claim import Outcome
from steadynorm.study.federation import MERGES, federate, plain_mean, skewed
from steadynorm.study.sources import pictures
from steadynorm.study.tools import Keeper

from .claims.made import some_data


def test_every_example_has_one_client_and_few_classes() -> None:
    labels = torch.arange(200) % 10
    parts = skewed(labels, 10, 2, 1)
    assert torch.cat(parts).sort().values.tolist() == list(range(200))
    assert [len(part) for part in parts] == [20] * 10
    assert max(len(labels[part].unique()) for part in parts) == 2
    assert not torch.equal(parts[0], skewed(labels, 10, 2, 2)[0])


def test_merging_by_hand() -> None:
    """Means 0 and 4, variances 1: on average 1, of all examples 1 + 4."""
    states: list[Any] = [
        {
            "running_mean": torch.tensor([mean]),
            "running_var": torch.tensor([1.0]),
            "num_batches_tracked": torch.tensor(3),
            "weight": torch.tensor([mean]),
        }
        for mean in (0.0, 4.0)
    ]
    plain, both = (MERGES[name](states, [1.0, 1.0]) for name in ("plain mean", "combine"))
    assert [float(plain[name]) for name in ("running_mean", "running_var", "weight")] == [2, 1, 2]
    assert [float(both[name]) for name in ("running_mean", "running_var", "weight")] == [2, 5, 2]
    assert int(plain["num_batches_tracked"]) == int(both["num_batches_tracked"]) == 3
    assert float(plain_mean(states, [1.0, 3.0])["weight"]) == 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 26 * 26, 10))


SETTINGS: dict[str, Any] = {"rounds": 3, "local_epochs": 1, "batch_size": 64, "lr": 0.1, "seed": 0}


def trained(keeper: Keeper | None = None, **other: Any) -> tuple[nn.Module, Outcome]:
    data, model = some_data(), net()
    parts = skewed(data.train.labels, 2, 2, 0)
    outcome = federate(model, data, parts, MERGES["combine"], keeper or Keeper(), **{**SETTINGS, **other})
    return model, outcome


def test_a_round_written_out() -> None:
    """Each client's part is one batch: two steps from the same weights, averaged by how many examples there are."""
    data, model = some_data(), net()
    parts = [torch.arange(48), torch.arange(48, 64)]
    federate(model, data, parts, MERGES["combine"], Keeper(), **{**SETTINGS, "rounds": 1})
    weights = []
    for part in parts:
        client = net()
        loss = F.cross_entropy(client(pictures(data.train.images[part])), data.train.labels[part])
        gradients = torch.autograd.grad(loss, list(client.parameters()))
        weights.append([p - 0.1 * g for p, g in zip(client.parameters(), gradients, strict=True)])
    for found, one, other in zip(model.parameters(), *weights, strict=True):
        torch.testing.assert_close(found, 0.75 * one + 0.25 * other, rtol=1e-4, atol=1e-6)


class _Stopping(Keeper):
    def __init__(self, at: int, state: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.at, self.state = at, state

    def restore(self) -> dict[str, Any] | None:
        return self.state

    def offer(self, done: int, total: int, state: Callable[[], dict[str, Any]]) -> None:
        if done == self.at:
            self.state = state()
            raise InterruptedError


def test_interrupted_and_not_are_equal() -> None:
    _, whole = trained()
    keeper = _Stopping(2)
    with pytest.raises(InterruptedError):
        trained(keeper)
    _, rest = trained(_Stopping(-1, keeper.state))
    assert (rest.values, rest.series) == (whole.values, whole.series)
    assert whole.series["validation accuracy"].x == [1, 2, 3]


def test_divergence_ends_it() -> None:
    with pytest.warns(NonFiniteStatisticsWarning):
        _, outcome = trained(lr=1e38)
    assert outcome.status == DIVERGED
    assert len(outcome.series["validation accuracy"].x) < 3
