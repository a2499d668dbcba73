"""Group against batch normalization in two kinds of training, each at its best rate."""

from __future__ import annotations

import pytest

from steadynorm.records import CONTRADICTED, CRASHED, SUPPORTED, UNDECIDED, Run
from steadynorm.study.claims.small_clients import CLAIM, FEDERATED, FOUR, NORMS, ONE
from steadynorm.study.results import Results

from .made import made


def runs(online: float, federated: float, places: tuple[str, ...] = (ONE, FEDERATED)) -> list[Run]:
    """Group normalization is so much better; at rate 0.03 everything is worse, by validation and by test."""
    return [
        made(
            {"training": place, "norm": norm, "lr": lr},
            seed,
            accuracy - lr + 0.01 * seed * (norm == "group"),
            [0.9 - lr],
        )
        for place in places
        for norm in NORMS
        for lr in (0.01, 0.03)
        for seed in range(3)
        if not (CLAIM.skip and CLAIM.skip({"training": place, "norm": norm}))
        for accuracy in [0.8 + (norm == "group") * (federated if place == FEDERATED else online)]
    ]


@pytest.mark.parametrize(
    ("online", "federated", "verdict"),
    [(0.1, 0.1, SUPPORTED), (-0.1, -0.1, CONTRADICTED), (0.1, -0.1, UNDECIDED), (0.1, -0.01, UNDECIDED)],
)
def test_verdict(online: float, federated: float, verdict: str) -> None:
    found = CLAIM.judge(Results(runs(online, federated)))
    assert found.verdict == verdict
    assert found.effects[0].estimate == pytest.approx(100 * online + 1)
    assert found.effects[1].estimate == pytest.approx(100 * federated + 1)
    assert [effect.decides for effect in found.effects] == [True, True, False, False, False, False]


def test_combine_is_judged_at_its_own_best_rate_and_beside_that_at_the_rate_of_the_plain_mean() -> None:
    found = runs(0.1, 0.1)
    for run in found:
        if run.cell.factors["norm"] == "batch, combine":
            run.series["validation accuracy"].y[-1] = run.cell.factors["lr"]  # type: ignore[call-overload]
    judgement = CLAIM.judge(Results(found))
    assert judgement.effects[1].estimate == pytest.approx(10 + 1 + 2)  # 2 points are lost at the rate 0.03
    assert judgement.effects[2].estimate == pytest.approx(0)
    assert "batch, combine 0.03 (the highest tried)" in judgement.finding


def test_what_is_missing_or_crashed_is_not_measured() -> None:
    kept = [run for run in runs(0.1, 0.1, (ONE, FOUR))]
    crashed = [made({"training": FEDERATED, "norm": "group", "lr": 0.01}, s, 0, status=CRASHED) for s in range(3)]
    found = CLAIM.judge(Results(kept + crashed))
    assert found.verdict == UNDECIDED
    assert "federated, group − batch, combine: not measured" in found.finding
    assert found.effects[3].estimate == pytest.approx(11)


def test_nothing_is_combined_online() -> None:
    cells = CLAIM.cells("full")
    assert {c.factors["training"] for c in cells if c.factors["norm"] == "batch, combine"} == {FEDERATED}
    assert {c.factors["training"] for c in cells if c.factors["norm"] == "batch"} == {ONE, FOUR, FEDERATED}
