"""What the initialization claim makes of its runs, and the weights it starts from."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steadynorm.records import CONTRADICTED, SUPPORTED, UNDECIDED, Run
from steadynorm.study.claims.initialization import WITH, WITHOUT, judge, width
from steadynorm.study.dense import dense, initialize, weights
from steadynorm.study.results import Results

from .sweep_runs import crashed, diverged
from .sweep_runs import trained as made

SCALES = (0.1, 1.0, 10.0)


def runs(seed: int, without: tuple[float, ...], with_: tuple[float, ...], lr: float = 0.1) -> list[Run]:
    """At each of `SCALES` the accuracy."""
    return [
        made(seed, accuracy, network=name, scale=scale, lr=lr)
        for name, accuracies in ((WITHOUT, without), (WITH, with_))
        for scale, accuracy in zip(SCALES, accuracies, strict=True)
    ]


def test_a_wider_range_and_more_accuracy_support_the_claim() -> None:
    judgement = judge(Results([run for seed in (0, 1) for run in runs(seed, (0.1, 0.9, 0.2), (0.9, 0.9, 0.9))]))
    assert judgement.verdict == SUPPORTED
    wider, better, without, with_ = judgement.effects
    assert (without.estimate, with_.estimate, wider.estimate) == (pytest.approx(1), pytest.approx(3), pytest.approx(2))
    assert better.estimate == pytest.approx(50)  # (0.8 + 0 + 0.7) / 3
    assert "(3.0 with, 1.0 without)" in judgement.finding


def test_a_narrower_range_contradicts_it() -> None:
    judgement = judge(Results([run for seed in (0, 1) for run in runs(seed, (0.9, 0.9, 0.9), (0.1, 0.9, 0.1))]))
    assert judgement.verdict == CONTRADICTED


def test_equal_ranges_are_undecided() -> None:
    assert judge(Results([run for s in (0, 1) for run in runs(s, (0.9,) * 3, (0.9,) * 3)])).verdict == UNDECIDED


def test_at_each_scale_the_best_rate_counts() -> None:
    some = [run for seed in (0, 1) for run in runs(seed, (0.1, 0.9, 0.2), (0.9, 0.9, 0.9), lr=0.1)]
    some += [run for seed in (0, 1) for run in runs(seed, (0.9, 0.1, 0.9), (0.1, 0.1, 0.1), lr=0.01)]
    judgement = judge(Results(some))
    assert judgement.effects[0].estimate == pytest.approx(0)
    assert judgement.tables[0].rows[0] == [
        "0.1",
        pytest.approx(0.9),
        "0.01, 0.01",
        2,
        pytest.approx(0.9),
        "0.1, 0.1",
        2,
    ]


def test_a_diverged_run_is_one_that_does_not_train() -> None:
    some = [run for seed in (0, 1) for run in runs(seed, (0.9, 0.9, 0.9), (0.9, 0.9, 0.9))]
    some = [run for run in some if run.cell.factors != {"network": WITHOUT, "scale": 10.0, "lr": 0.1}]
    some += [diverged(seed, network=WITHOUT, scale=10.0, lr=0.1) for seed in (0, 1)]
    judgement = judge(Results(some))
    assert judgement.effects[0].estimate == pytest.approx(1)
    assert judgement.effects[1].estimate == pytest.approx(80 / 3)  # diverged, it guesses: 0.1


def test_a_seed_with_a_crashed_run_is_left_out() -> None:
    some = [run for seed in (0, 1, 2) for run in runs(seed, (0.1, 0.9, 0.2), (0.9, 0.9, 0.9))]
    some[-1] = crashed(2, network=WITH, scale=10.0, lr=0.1)
    assert judge(Results(some)).effects[0].pairs == 2


def test_nothing_finished_is_undecided() -> None:
    some = [crashed(seed, network=n, scale=s, lr=0.1) for seed in (0, 1) for n in (WITHOUT, WITH) for s in SCALES]
    assert judge(Results(some)).verdict == UNDECIDED


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([], 0.0),
        ([1.0], 0.75),  # half of the half decade below, half of the decade above
        ([1.0, 10.0], 1.75),
        ([0.1, 10.0], 1.0),  # a gap between: the longer of 0.5 and 1
        ([0.1, 10**-0.5, 1.0, 10.0], 2.75),
    ],
)
def test_width(levels: list[float], expected: float) -> None:
    assert width(levels, [0.1, 10**-0.5, 1.0, 10.0]) == pytest.approx(expected)


def test_one_scale_has_no_width() -> None:
    assert width([1.0], [1.0]) == 0


def test_initial_weights_have_the_chosen_spread() -> None:
    torch.manual_seed(0)
    model = dense(400, 300, 2, 10, batch_norm=True)
    initialize(model, 3.0)
    for weight in weights(model):
        assert weight.std().item() == pytest.approx(3 / math.sqrt(weight.shape[1]), rel=0.05)
    assert all(layer.bias.eq(0).all() for layer in model.modules() if isinstance(layer, nn.Linear))


def test_convolutions_count_their_whole_window() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 64, 3, bias=False))
    initialize(model)
    assert weights(model)[0].std().item() == pytest.approx(math.sqrt(2 / 72), rel=0.05)


def test_normalization_leaves_the_initial_weights_of_a_seed() -> None:
    found = []
    for batch_norm in (False, True):
        torch.manual_seed(1)
        model = dense(12, 7, 3, 5, batch_norm=batch_norm, activation="sigmoid", dropout=0.5 * batch_norm)
        initialize(model, 0.1)
        found.append(weights(model))
    assert [tuple(weight.shape) for weight in found[0]] == [(7, 12), (7, 7), (7, 7), (5, 7)]
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
