"""How batch sizes are compared: equal examples, rates in proportion, and what small batches lose."""

from __future__ import annotations

import pytest
from torch import nn

from steadynorm.records import CONTRADICTED, CRASHED, SUPPORTED, UNDECIDED, Cell, Run
from steadynorm.study.claim import Outcome
from steadynorm.study.claims import batch_size
from steadynorm.study.claims.batch_size import CLAIM, tuned
from steadynorm.study.results import Results
from steadynorm.study.sources import Images
from steadynorm.study.tools import Tools
from steadynorm.study.training import Recipe

from .made import made, some_data

T1 = 12.706204736432095
"""Student's t: 97.5% quantile with 1 degree of freedom."""


def runs(batch: list[float], group: list[float], at_32: tuple[float, float]) -> list[Run]:
    """Each seed's accuracy at 1, 2 and 4 (0.1 more, and less, at 1 and 4), and that of both at 32."""
    found = []
    for norm, accuracies, ordinary in (("batch", batch, at_32[0]), ("group", group, at_32[1])):
        for seed, accuracy in enumerate(accuracies):
            each = {1: accuracy - 0.1, 2: accuracy, 4: accuracy + 0.1, 32: ordinary}
            found += [
                made({"norm": norm, "batch_size": size, "rate": 0.1}, seed, value) for size, value in each.items()
            ]
    return found


def test_supported() -> None:
    found = CLAIM.judge(Results(runs([0.5, 0.52], [0.7, 0.7], (0.9, 0.8))))
    assert found.effects[0].estimate == pytest.approx(19.0)  # 20 and 18
    assert found.effects[1].estimate == pytest.approx(29.0)  # from 90 to 50 and 52, against from 80 to 70
    assert [effect.estimate for effect in found.effects[2:]] == pytest.approx([19.0, 19.0, 19.0, -10.0])
    assert (found.effects[0].low, found.effects[0].high) == pytest.approx((19 - T1, 19 + T1))
    assert found.verdict == SUPPORTED


def test_one_seed_is_undecided() -> None:
    assert CLAIM.judge(Results(runs([0.5], [0.7], (0.9, 0.8)))).verdict == UNDECIDED


def test_contradicted() -> None:
    assert CLAIM.judge(Results(runs([0.8, 0.801], [0.6, 0.6], (0.8, 0.8)))).verdict == CONTRADICTED


def test_group_normalization_better_at_every_size_is_not_enough() -> None:
    """20 points above at small sizes, and 30 at 32."""
    found = CLAIM.judge(Results(runs([0.50, 0.501], [0.7, 0.7], (0.5, 0.8))))
    assert found.effects[1].estimate == pytest.approx(-10.05)
    assert found.verdict == UNDECIDED


def test_a_seed_that_lacks_a_size_does_not_count() -> None:
    complete = runs([0.50, 0.501, 0.1], [0.7, 0.7, 0.9], (0.9, 0.8))
    kept = [run for run in complete if not (run.cell.seed == 2 and run.cell.factors["batch_size"] == 4)]
    crashed = made({"norm": "group", "batch_size": 4, "rate": 0.1}, 2, 0.0, status=CRASHED)
    found = CLAIM.judge(Results([*kept, crashed]))
    assert found.effects[0].pairs == found.effects[1].pairs == 2
    assert found.verdict == SUPPORTED


def test_ghosts_of_the_whole_batch_are_not_run_again() -> None:
    cells = CLAIM.cells("quick", seeds=1)
    assert {cell.factors["batch_size"] for cell in cells if cell.factors["norm"] == "ghost"} == {32, 64, 128}
    assert len(cells) == 6 * 8 - 5


def test_every_size_has_its_own_best_rate() -> None:
    found = tuned(
        Results(
            [
                made({"norm": "batch", "batch_size": size, "rate": rate}, 0, 0.5, [validation])
                for size, rate, validation in [(1, 0.1, 0.6), (1, 1.0, 0.5), (2, 0.1, 0.3), (2, 1.0, 0.4)]
            ]
        )
    )
    assert [(run.cell.factors["batch_size"], run.cell.factors["rate"]) for run in found.runs] == [(1, 0.1), (2, 1.0)]


@pytest.mark.parametrize(("size", "lr"), [(1, 0.1 / 32), (32, 0.1), (128, 0.4)])
def test_rates_are_in_proportion_to_the_batch(size: int, lr: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Recipe] = []

    def remember(model: nn.Module, recipe: Recipe, source: Images, keeper: object) -> Outcome:
        seen.append(recipe)
        return Outcome({})

    monkeypatch.setattr(batch_size, "fit", remember)
    monkeypatch.setattr(Tools, "data", lambda self: some_data())
    cell = Cell("batch-size", {"norm": "group", "batch_size": size, "rate": 0.1}, 0, {"optimizer": "momentum"})
    batch_size.run(cell, Tools(cell))
    assert (seen[0].lr, seen[0].batch_size, seen[0].optimizer) == (pytest.approx(lr), size, "momentum")
