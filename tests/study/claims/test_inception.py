"""A small Inception as described, its variants' recipes, an ensemble that is its members' mean, and the verdict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from steadynorm import BatchNorm2d
from steadynorm.records import CONTRADICTED, CRASHED, FINISHED, SUPPORTED, UNDECIDED, Cell, Run
from steadynorm.study.claims import inception
from steadynorm.study.claims.inception import CLAIM, ENSEMBLE, NETWORKS, VARIANTS, alone, together
from steadynorm.study.models.inception import Inception
from steadynorm.study.results import Results
from steadynorm.study.tools import Keeper

from .made import made, some_data

STEPS = {
    "Baseline": [0.2, 0.4, 0.5, 0.6],
    "BN-Baseline": [0.3, 0.6, 0.7, 0.7],
    "BN-x5": [0.6, 0.7, 0.8, 0.8],
    "BN-x30": [0.5, 0.6, 0.8, 0.9],
    "BN-x5-Sigmoid": [0.1, 0.2, 0.3, 0.5],
    "Sigmoid": [0.1, 0.1, 0.1, 0.1],
}


def runs(**other: list[float]) -> list[Run]:
    found = []
    for seed in range(3):
        for name in NETWORKS:
            curve = [y + 0.01 * seed * (name != "Sigmoid") for y in other.get(name.replace("-", "_"), STEPS[name])]
            run = made({"network": name}, seed, curve[-1], curve)
            run.values["best validation accuracy"] = max(curve)
            found.append(run)
    return found


def test_supported_with_ratios_by_hand() -> None:
    """The baseline's best is at step 40: BN-Baseline is there at 20, x5 at 10, x30 at 20."""
    found = CLAIM.judge(Results(runs()))
    assert found.verdict == SUPPORTED
    assert [effect.estimate for effect in found.effects[:3]] == pytest.approx([2, 4, 2])
    assert found.effects[3].estimate == pytest.approx(41)
    assert found.tables[0].rows[2] == ["BN-x5", 10.0, 3, 3, 14.0]
    assert found.tables[0].rows[5] == ["Sigmoid", None, 0, 3, None]
    assert "without BN sigmoids reach 0.100" in found.finding


def test_undecided_where_one_variant_is_no_faster() -> None:
    assert CLAIM.judge(Results(runs(BN_x30=[0.1, 0.2, 0.3, 0.7]))).verdict == UNDECIDED


def test_contradicted_where_all_are_slower_and_sigmoids_worse() -> None:
    late = {name.replace("-", "_"): [0.1, 0.1, 0.1, 0.2] for name in NETWORKS}
    early = {"Baseline": [0.1, 0.5, 0.5, 0.5], "Sigmoid": [0.1, 0.3, 0.5, 0.5]}
    assert CLAIM.judge(Results(runs(**{**late, **early}))).verdict == CONTRADICTED


def test_undecided_without_the_baseline() -> None:
    kept = [run for run in runs() if run.cell.factors["network"] != "Baseline"]
    crashed = [made({"network": "Baseline"}, seed, 0, status=CRASHED) for seed in range(3)]
    assert CLAIM.judge(Results(kept + crashed)).verdict == UNDECIDED


def test_the_gain_of_the_ensemble() -> None:
    more = [made({"network": ENSEMBLE}, seed, 0.9 + 0.01 * seed) for seed in range(3)]
    for run in more:
        run.values["test accuracy of one"] = 0.88
        run.series.clear()
    found = CLAIM.judge(Results(runs() + more))
    assert found.effects[-1].label == "test accuracy, ensemble of 6 − one of it"
    assert found.effects[-1].estimate == pytest.approx(3.0)
    assert not found.effects[-1].decides
    assert len(CLAIM.judge(Results(runs())).effects) == len(found.effects) - 1


def test_layers_and_parameters() -> None:
    """Weights of 20 convolutions by hand, at width w: 18c + ..., with a weight and bias a channel of BN."""
    plain, normalized = (Inception(3, 10, 4, batch_norm=bn) for bn in (False, True))
    convolutions = [m for m in normalized.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in normalized.modules() if isinstance(m, BatchNorm2d)]
    assert len(convolutions) == len(norms) == 20
    w, v = 4, 8

    def module(inputs: int, w: int) -> int:
        return inputs * w * 4 + 9 * (w * 2 * w + w * w + w * w)

    halving = 2 * 20 * w + 9 * (w * 2 * w + w * w + w * 2 * w)
    weights = 27 * 2 * w + module(2 * w, w) + halving + module(36, v)
    channels = 2 * w + (w + 3 * w + 3 * w + w) + (3 * w + 4 * w) + 2 * 8 * w
    assert sum(p.numel() for p in normalized.parameters()) == weights + 3 * channels + 10 * 40 + 10
    assert sum(p.numel() for p in plain.parameters()) == weights + channels + 10 * 40 + 10
    assert normalized(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_same_weights_with_and_without(sigmoid: bool) -> None:
    weights = []
    for batch_norm in (False, True):
        torch.manual_seed(1)
        model = Inception(1, 10, 4, batch_norm=batch_norm, sigmoid=sigmoid)
        weights.append([m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)])
        assert any(isinstance(m, nn.Sigmoid) for m in model.modules()) == sigmoid
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_recipe_of_each_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def fit(model: nn.Module, recipe: Any, source: Any, keeper: Keeper) -> Any:
        seen.update(model=model, recipe=recipe)
        raise InterruptedError

    monkeypatch.setattr(inception, "fit", fit)
    settings = {"lr": 0.02, "decay": 0.5, "weight_decay": 1e-4, "epochs": 2, "batch_size": 32, "width": 2}
    cell = Cell("inception", {"network": "x"}, 0, {**settings, "evaluations": 2})
    expected = {"Baseline": (0.02, 0.5, 1e-4, 0.2), "BN-Baseline": (0.02, 0.5, 1e-4, 0.2)}
    expected |= {"BN-x5": (0.1, 0.5**6, 2e-5, 0.0), "BN-x30": (0.6, 0.5**6, 2e-5, 0.0)}
    expected |= {"BN-x5-Sigmoid": (0.1, 0.5**6, 2e-5, 0.0), "Sigmoid": (0.02, 0.5, 1e-4, 0.2)}
    for name, (lr, decay, penalty, dropout) in expected.items():
        with pytest.raises(InterruptedError):
            alone(cell, some_data(), VARIANTS[name], 0, Keeper())
        recipe, drop = seen["recipe"], next(m for m in seen["model"].modules() if isinstance(m, nn.Dropout))
        found = (recipe.lr, recipe.decay, recipe.weight_decay, drop.p)
        assert found == pytest.approx((lr, decay, penalty, dropout)), name
        assert recipe.evaluate_every == 2


class _Stopping(Keeper):
    """Keeps the state of one step, and ends the run there; then gives it back."""

    def __init__(self, at: int, state: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.at, self.state = at, state

    def restore(self) -> dict[str, Any] | None:
        return self.state

    def offer(self, done: int, total: int, state: Callable[[], dict[str, Any]]) -> None:
        if done == self.at:
            self.state = state()
            raise InterruptedError


def test_an_ensemble_is_the_mean_of_its_members_also_when_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "MEMBERS", 3)
    settings = {"lr": 0.02, "epochs": 2, "batch_size": 32, "width": 2, "optimizer": "momentum", "evaluations": 1}
    cell, data, variant = Cell("inception", {"network": ENSEMBLE}, 3, settings), some_data(), VARIANTS[ENSEMBLE]
    whole = together(cell, data, variant, Keeper())
    assert whole.status == FINISHED
    each = [alone(cell, data, variant, 4000 + member, Keeper()) for member in range(3)]
    total = sum(probabilities for _, probabilities in each)
    right = (total.argmax(1) == data.test.labels).double().mean()  # type: ignore[union-attr]
    assert whole.values["test accuracy"] == pytest.approx(float(right))
    single = sum(outcome.values["test accuracy"] or 0 for outcome, _ in each) / 3
    assert whole.values["test accuracy of one"] == pytest.approx(single)
    keeper = _Stopping(2 * 2 + 1)  # between the last member's two steps
    with pytest.raises(InterruptedError):
        together(cell, data, variant, keeper)
    torch.save(keeper.state, tmp_path / "state")
    kept = torch.load(tmp_path / "state", weights_only=True)
    assert together(cell, data, variant, _Stopping(-1, kept)).values == whole.values
