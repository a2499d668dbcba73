"""What the learning-rate claim makes of its runs."""

from __future__ import annotations

import pytest

from steadynorm.records import CONTRADICTED, SUPPORTED, UNDECIDED, Run
from steadynorm.study.claims.learning_rate import WITH, WITHOUT, judge
from steadynorm.study.results import Results
from steadynorm.study.sweeps import by_level, trained
from steadynorm.study.tuning import best_rates

from .sweep_runs import crashed, diverged
from .sweep_runs import trained as made

RATES = (0.01, 0.1, 1.0, 10.0)


def runs(seed: int, without: tuple[float | None, ...], with_: tuple[float | None, ...]) -> list[Run]:
    """At each of `RATES` the accuracy, None where training diverged."""
    return [
        diverged(seed, network=name, lr=lr) if accuracy is None else made(seed, accuracy, network=name, lr=lr)
        for name, accuracies in ((WITHOUT, without), (WITH, with_))
        for lr, accuracy in zip(RATES, accuracies, strict=True)
    ]


def test_rates_a_thousand_times_larger_support_the_claim() -> None:
    some = [run for seed in (0, 1, 2) for run in runs(seed, (0.9, None, None, None), (0.95, 0.96, 0.9, 0.9))]
    judgement = judge(Results(some))
    assert judgement.verdict == SUPPORTED
    larger, tuned, faster, matched = judgement.effects
    assert (larger.estimate, larger.neutral, larger.pairs) == (pytest.approx(1000), 10, 3)
    assert tuned.estimate == pytest.approx(6)  # 0.96 at its best, 0.1, minus 0.9 at its best, 0.01
    assert matched.estimate == pytest.approx(5)  # both at 0.01
    assert faster.estimate == pytest.approx(1)
    assert "0.01 without, 0.1 with" in judgement.finding


@pytest.mark.parametrize(
    ("without", "verdict"), [((0.9, 0.9, 0.9, None), CONTRADICTED), ((0.9, 0.9, None, None), UNDECIDED)]
)
def test_a_smaller_largest_rate_contradicts_it_an_equal_one_not_on_so_coarse_a_grid(
    without: tuple[float | None, ...], verdict: str
) -> None:
    some = [run for seed in (0, 1) for run in runs(seed, without, (0.9, 0.95, None, None))]
    assert judge(Results(some)).verdict == verdict


def test_seeds_that_disagree_leave_it_undecided() -> None:
    some = runs(0, (0.9, None, None, None), (0.9, 0.9, 0.9, None)) + runs(
        1, (0.9, 0.9, None, None), (0.9, 0.9, None, None)
    )
    judgement = judge(Results(some))
    assert judgement.verdict == UNDECIDED
    assert judgement.effects[0].estimate == pytest.approx(10)  # the geometric mean of 100 and 1


def test_one_seed_decides_nothing() -> None:
    assert judge(Results(runs(0, (0.9, None, None, None), (0.9, 0.9, 0.9, 0.9)))).verdict == UNDECIDED


def test_a_seed_with_a_crashed_run_is_left_out() -> None:
    some = [run for seed in (0, 1) for run in runs(seed, (0.9, 0.9, None, None), (0.9, 0.9, None, None))]
    some += [*runs(2, (0.9, 0.9, None, None), (0.9, 0.9, 0.9, 0.9))[:-1], crashed(2, network=WITH, lr=10.0)]
    larger = judge(Results(some)).effects[0]
    assert (larger.pairs, larger.estimate) == (2, pytest.approx(1))


def test_a_seed_with_a_missing_run_is_left_out() -> None:
    some = [run for seed in (0, 1) for run in runs(seed, (0.9, 0.9, None, None), (0.9, 0.9, None, None))]
    assert judge(Results(some[:-1])).effects[0].pairs == 1


def test_both_networks_are_held_to_the_same_accuracy() -> None:
    sweeps = {
        name: by_level(Results(runs(0, (0.80, 0.82, 0.5, None), (0.7, 0.9, 0.85, 0.81))), "lr", network=name)
        for name in (WITHOUT, WITH)
    }
    assert trained(sweeps) == {WITHOUT: {0: [0.1]}, WITH: {0: [0.1, 1.0, 10.0]}}  # from 0.9 × 0.9 = 0.81


def test_the_finding_says_where_the_grid_ended_first() -> None:
    some = [run for seed in (0, 1) for run in runs(seed, (0.9, None, None, None), (0.9, 0.9, 0.9, 0.9))]
    assert "with BN still trained at the largest rate tried, 10" in judge(Results(some)).finding


def test_nothing_finished_is_undecided() -> None:
    some = [crashed(seed, network=name, lr=lr) for seed in (0, 1) for name in (WITHOUT, WITH) for lr in RATES]
    assert judge(Results(some)).verdict == UNDECIDED


def test_the_table_compares_at_every_rate() -> None:
    some = [run for seed in (0, 1) for run in runs(seed, (0.9, None, None, None), (0.8, 0.9, 0.5, None))]
    rows = judge(Results(some)).tables[0].rows
    assert [row[:4] for row in rows] == [
        ["0.01", pytest.approx(0.9), pytest.approx(0.8), pytest.approx(-10)],
        ["0.1", pytest.approx(0.1), pytest.approx(0.9), pytest.approx(80)],
        ["1", pytest.approx(0.1), pytest.approx(0.5), pytest.approx(40)],
        ["10", pytest.approx(0.1), pytest.approx(0.1), 0.0],  # guessing
    ]
    assert [row[-2:] for row in rows] == [[2, 0], [0, 2], [0, 0], [0, 0]]


def test_of_equally_accurate_rates_the_lower_loss_is_best() -> None:
    some = [made(0, 0.9, loss=loss, network=WITH, lr=lr) for lr, loss in ((0.1, 0.5), (1.0, 0.4), (10.0, 0.6))]
    assert best_rates(Results(some), "network") == {WITH: 1.0}
    assert best_rates(Results([]), "network") == {}


def test_a_rate_that_diverged_or_lacks_a_seed_is_not_the_best() -> None:
    some = [made(seed, 0.9, loss=0.5, network=WITH, lr=0.1) for seed in (0, 1)]
    for other in (diverged, crashed):
        better = [made(0, 0.95, loss=0.1, network=WITH, lr=1.0), other(1, network=WITH, lr=1.0)]
        assert best_rates(Results([*some, *better]), "network") == {WITH: 0.1}


def test_seeds_that_agree_on_the_grid_are_no_more_exact_than_it() -> None:
    """All find 1 without and 10 with BN, of rates a factor of 10 apart: anything from 1 to 100 times."""
    some = [run for seed in (0, 1, 2) for run in runs(seed, (0.9, 0.9, 0.9, None), (0.9, 0.9, 0.9, 0.9))]
    larger = judge(Results(some)).effects[0]
    assert (larger.low, larger.estimate, larger.high) == pytest.approx((1, 10, 100))
