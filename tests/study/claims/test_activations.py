"""The paper's network, what is watched in it, and the verdict from how far the sigmoids' inputs move."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steadynorm.records import CONTRADICTED, CRASHED, SUPPORTED, UNDECIDED, Cell, Run
from steadynorm.study.claims import activations
from steadynorm.study.claims.activations import CLAIM, LAYERS, binary, watched
from steadynorm.study.models.systems import sigmoid_net
from steadynorm.study.results import Results
from steadynorm.study.tools import Keeper, Tools

from .made import made, some_data


def runs(ratios: dict[str, list[float]], late: float | None = None) -> list[Run]:
    """With BN every layer drifts by 0.2; without it by each seed's ratio of that, or by `late` in the second half."""
    found = []
    for seed in range(3):
        plain = {}
        for layer, each in ratios.items():
            mean = 0.2 * each[seed]
            second = mean if late is None else 0.2 * late
            plain[f"{layer}, drift"] = [None, *[(5 * mean - 3 * second) / 2] * 2, *[second] * 3]
        normalized = {f"{layer}, drift": [0.1, 0.3, 0.2, 0.1, 0.2, 0.3] for layer in ratios}
        found += [
            made({"network": "without BN", "lr": 0.3}, seed, 0.7, [0.4, 0.5], plain),
            made({"network": "with BN", "lr": 0.3}, seed, 0.9, [0.9, 0.9], normalized),
        ]
    return found


UP, DOWN, MIXED = [2.0, 3.0, 2.0], [1 / 2, 1 / 3, 1 / 2], [2.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ((UP, UP, UP), SUPPORTED),
        ((DOWN, DOWN, DOWN), CONTRADICTED),
        ((UP, UP, MIXED), UNDECIDED),
        ((DOWN, UP, UP), UNDECIDED),
    ],
)
def test_verdict(ratios: tuple[list[float], ...], verdict: str) -> None:
    assert CLAIM.judge(Results(runs(dict(zip(LAYERS, ratios, strict=True))))).verdict == verdict


def test_a_second_half_that_is_the_other_way_round_leaves_it_undecided() -> None:
    assert CLAIM.judge(Results(runs(dict.fromkeys(LAYERS, UP), late=0.5))).verdict == UNDECIDED


def test_effects() -> None:
    found = CLAIM.judge(Results(runs(dict.fromkeys(LAYERS, UP), late=0.5)))
    drifts, late, matched, (accuracy, faster) = (found.effects[a:b] for a, b in ((0, 3), (3, 6), (6, 9), (9, 11)))
    middle, half = math.log(12) / 3, 4.302652729911275 * math.log(1.5) / 3  # the logs have sd log(1.5) / sqrt(3)
    for effect in (*drifts, *matched):
        assert effect.estimate == pytest.approx(math.exp(middle))
        assert (effect.low, effect.high) == pytest.approx((math.exp(middle - half), math.exp(middle + half)))
    assert [effect.estimate for effect in late] == pytest.approx([0.5, 0.5, 0.5])
    assert "lower with BN in 3 of 3 pairs of layer and rate" in found.finding
    assert (accuracy.estimate, faster.estimate) == pytest.approx((20.0, 2.0))
    assert [effect.decides for effect in found.effects] == [True] * 6 + [False] * 5


def test_crashed_runs_leave_pairs_out_and_none_is_undecided() -> None:
    kept = [run for run in runs(dict.fromkeys(LAYERS, UP)) if run.cell.seed != 1]
    crashed = made({"network": "with BN", "lr": 0.3}, 1, 0.0, status=CRASHED)
    assert CLAIM.judge(Results([*kept, crashed])).effects[0].pairs == 2
    assert CLAIM.judge(Results([])).verdict == UNDECIDED
    assert CLAIM.judge(Results([crashed])).verdict == UNDECIDED


def test_a_panel_has_three_percentiles_of_each_network_and_layer() -> None:
    series = {f"{layer}, {p}th percentile": [1.0, 2.0] for layer in LAYERS for p in (15, 50, 85)}
    pair = [made({"network": name, "lr": 0.3}, 0, 0.5, [0.5], series) for name in ("without BN", "with BN")]
    panels = CLAIM.judge(Results(pair)).figures[1].panels
    assert [panel.title for panel in panels[:2]] == ["Layer 3, without BN", "Layer 3, with BN"]
    assert all([line.name for line in panel.lines] == ["15th", "50th", "85th"] for panel in panels)


def test_binary() -> None:
    assert binary(torch.tensor([0, 127, 128, 255], dtype=torch.uint8)).tolist() == [0, 0, 1, 1]


def test_the_network_is_the_papers() -> None:
    """784·100+100, twice 100·100+100, 100·10+10; and 200 for each of three normalizations."""
    plain, normalized = (sigmoid_net(28, 10, 0.1, batch_norm=batch_norm) for batch_norm in (False, True))
    assert sum(p.numel() for p in plain.parameters()) == 78_500 + 20_200 + 1_010
    assert sum(p.numel() for p in normalized.parameters()) == 78_500 + 20_200 + 1_010 + 600
    hidden = ["Linear", "BatchNorm1d", "Sigmoid"]
    assert [type(m).__name__ for m in normalized] == ["Flatten", *hidden * 3, "Linear"]
    first = plain[1]
    assert isinstance(first, nn.Linear)
    assert float(first.weight.detach().std()) == pytest.approx(0.1, rel=0.02)
    assert not first.bias.any()


@pytest.mark.parametrize("batch_norm", [False, True])
def test_what_is_watched(batch_norm: bool) -> None:
    network = sigmoid_net(28, 10, 0.1, batch_norm=batch_norm)
    x = torch.rand(5, 1, 28, 28)
    found = watched(network).inputs_of_layers(x)
    names = [*LAYERS, *(f"{layer} before BN" for layer in LAYERS)] if batch_norm else [*LAYERS]
    assert list(found) == names
    network.eval()
    with torch.no_grad():
        assert torch.equal(network[-2:](found["layer 3"]), network(x))
        if batch_norm:
            assert torch.equal(network[-3:](found["layer 3 before BN"]), network(x))


class Stopping(Keeper):
    """Keeps the state of one step, and stops the run there the first time."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at, self._state = at, None

    def restore(self) -> dict | None:
        return self._state

    def offer(self, done: int, total: int, state) -> None:  # type: ignore[no-untyped-def]
        if done == self._at and self._state is None:
            given = state()
            self._state = {**given, "model": {k: v.clone() for k, v in given["model"].items()}}
            raise KeyboardInterrupt


def test_an_interrupted_run_has_the_same_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tools, "data", lambda self: some_data())
    settings = {"batch_size": 16, "optimizer": "sgd", "std": 0.1, "steps": 6, "evaluate_every": 2, "data": "made"}
    cell = Cell("activations", {"network": "with BN", "lr": 0.3}, 0, settings)

    def run(keeper: Keeper) -> activations.Outcome:
        tools = Tools(cell)
        tools.keeper = keeper
        torch.manual_seed(0)
        return activations.run(cell, tools)

    whole, stopping = run(Keeper()), Stopping(3)
    with pytest.raises(KeyboardInterrupt):
        run(stopping)
    again = run(stopping)
    assert again.series == whole.series
    assert again.values == whole.values
    assert whole.series["layer 3, drift"].x == [4, 6]
    assert whole.series["layer 3, 15th percentile"].x == [2, 4, 6]
