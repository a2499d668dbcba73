"""Statistics that stop, accuracies by batches and on changed images against ones written out, and the verdict."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from steadynorm import BatchNorm2d, adapt_
from steadynorm.records import CONTRADICTED, CRASHED, SUPPORTED, UNDECIDED, Run
from steadynorm.study.claims.inference import (
    BN,
    CLAIM,
    PLAIN,
    SHIFTS,
    by_batches,
    folded,
    network,
    shifted,
)
from steadynorm.study.models.frozen import FrozenFrom
from steadynorm.study.results import Results
from steadynorm.study.sources import mixed, pictures

from .made import made, some_data


def runs(gains: list[float]) -> list[Run]:
    found = []
    for seed, gain in enumerate(gains):
        for kind in (BN, PLAIN):
            run = made({"network": kind}, seed, 0.9)
            for name in SHIFTS:
                run.values[name] = 0.5 if kind == BN else 0.6
                run.values[f"{name}, adapted"] = 0.5 + gain
            found.append(run)
    return found


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [([0.2, 0.21, 0.22], SUPPORTED), ([-0.2, -0.21, -0.22], CONTRADICTED), ([0.2, -0.2, 0.1], UNDECIDED)],
)
def test_verdict(gains: list[float], verdict: str) -> None:
    assert CLAIM.judge(Results(runs(gains))).verdict == verdict


def test_effects_by_hand() -> None:
    """Adapted 0.7 instead of 0.5; BN loses 0.4 of its accuracy, the other network 0.3."""
    found = CLAIM.judge(Results(runs([0.2, 0.2, 0.2]))).effects
    assert [effect.estimate for effect in found[:3]] == pytest.approx([20, 10, 20])
    crashed = [made({"network": BN}, seed, 0, status=CRASHED) for seed in range(3)]
    assert CLAIM.judge(Results(crashed)).verdict == UNDECIDED


def test_statistics_stop_and_weights_do_not() -> None:
    torch.manual_seed(0)
    model = FrozenFrom(network(1, 10, batch_norm=True), 2)
    first = next(m for m in model.modules() if isinstance(m, BatchNorm2d))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    means, weights = [], []
    for _ in range(4):
        model.train()
        model(torch.randn(8, 1, 28, 28)).square().sum().backward()
        optimizer.step()
        means.append(first.running_mean.clone())  # type: ignore[union-attr]
        weights.append(first.weight.detach().clone())
    assert not torch.equal(means[0], means[1])
    assert torch.equal(means[1], means[3])
    assert not torch.equal(weights[2], weights[3])
    other = FrozenFrom(network(1, 10, batch_norm=True), 2)
    other.load_state_dict(model.state_dict())
    other.train()(torch.randn(8, 1, 28, 28))
    assert int(other.steps) == 5
    assert not next(m for m in other.modules() if isinstance(m, BatchNorm2d)).training


def test_changes_by_hand() -> None:
    x = torch.rand(2, 1, 8, 8)
    changed = {name: change(x, torch.Generator().manual_seed(0)) for name, change in SHIFTS.items()}
    assert torch.equal(changed["inverted"], 1 - x)
    assert torch.equal(changed["dark"], 0.3 * x)
    assert torch.equal(changed["moved"][..., 4:, 4:], x[..., :-4, :-4])
    assert not changed["moved"][..., :4, :].any()
    assert float((changed["noisy"] - x).std()) == pytest.approx(0.3, abs=0.05)


def trained() -> tuple[nn.Module, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    data, model = some_data(), network(1, 10, batch_norm=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(pictures(data.train.images)), data.train.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), [(pictures(data.test.images), data.test.labels)]


def test_measures_against_ones_written_out() -> None:
    model, test = trained()
    before = copy.deepcopy(model.state_dict())
    (x, labels), seed = test[0], 2
    values = {**shifted(model, test, seed, adapted=True), **by_batches(model, test, seed), **folded(model, test)}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def right(by: nn.Module, images: torch.Tensor) -> float:
        with torch.no_grad():
            return float((by.eval()(images).argmax(1) == labels).double().mean())

    assert values["dark"] == pytest.approx(right(model, 0.3 * x))
    other = copy.deepcopy(model)
    adapt_(other, [0.3 * x])
    assert values["dark, adapted"] == pytest.approx(right(other, 0.3 * x))
    assert "dark, adapted" not in shifted(model, test, seed, adapted=False)

    plain = copy.deepcopy(model).train()  # momentum 0 and batches by hand
    order, hits = torch.randperm(20, generator=torch.Generator().manual_seed(mixed(seed, 8))), 0
    for start in range(0, 20, 4):
        part = order[start : start + 4]
        hits += int((plain(x[part]).argmax(1) == labels[part]).sum())
    assert values["batches of 4, mixed"] == pytest.approx(hits / 20)
    assert values["norms folded"] == 3
    assert values["predictions changed by folding"] == 0
    assert 0 <= (values["largest error of folding"] or 0) < 1e-5
