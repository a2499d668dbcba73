"""Numbers by seed that several runs gave together, and what sweeps are made of."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch

from steadynorm import BatchNorm1d
from steadynorm.errors import NonFiniteStatisticsWarning
from steadynorm.records import SUPPORTED, UNDECIDED, Cell, Run, place, read
from steadynorm.study.claim import Claim, Judgement, Outcome
from steadynorm.study.claims import find
from steadynorm.study.data import ImageData, Part
from steadynorm.study.results import Results
from steadynorm.study.runner import Engine, run_cell
from steadynorm.study.sources import standardized
from steadynorm.study.sweeps import by_level, mean_accuracy
from steadynorm.study.tools import Tools
from steadynorm.study.tuning import validated
from steadynorm.study.verdict import contrast, judged, paired_difference, paired_ratio

from .claims.sweep_runs import crashed, diverged, trained


def test_paired_difference_is_over_seeds_that_have_both() -> None:
    effect = paired_difference({0: 0.9, 1: 0.7, 2: 0.5}, {0: 0.6, 1: 0.5, 3: 0.1}, "gain", "points", scale=100)
    assert effect.estimate == pytest.approx(25) and effect.pairs == 2
    half = 12.7062047 * 5  # t of one degree of freedom times the standard error of 30 and 20
    assert (effect.low, effect.high) == (pytest.approx(25 - half), pytest.approx(25 + half))


def test_paired_ratio_is_geometric_and_can_be_asked_to_exceed_more_than_one() -> None:
    ratios = {0: 16.0, 1: 64.0, 2: 32.0}, {0: 1.0, 1: 2.0, 2: 1.0}
    effect = paired_ratio(*ratios, "rates")
    assert effect.estimate == pytest.approx(2 ** ((4 + 5 + 5) / 3)) and judged([effect]) == SUPPORTED
    assert effect.low is not None and effect.low == pytest.approx(2 ** (14 / 3 - 4.302653 / 3))
    assert judged([paired_ratio(*ratios, "rates", neutral=10)]) != SUPPORTED  # the interval begins at 9.4
    assert judged([paired_ratio(*ratios, "rates", neutral=9)]) == SUPPORTED
    assert paired_ratio({0: 1.0}, {0: 0.0}, "rates").pairs == 0


def test_average_is_of_one_number_a_seed() -> None:
    effect = contrast({2: 3.0, 0: 1.0}, "width", "decades")
    assert (effect.estimate, effect.neutral, effect.pairs) == (2.0, 0.0, 2)
    assert contrast({}, "width", "decades").estimate is None


def test_complete_keeps_seeds_with_every_combination() -> None:
    runs = [trained(seed, 0.5, lr=lr) for seed in (0, 1, 2) for lr in (0.1, 1.0)]
    runs[2] = crashed(1, lr=0.1)
    assert Results(runs).complete().seeds == [0, 2]
    assert Results(runs[:-1]).complete().seeds == [0]


def test_runs_are_chosen_by_validation_alone() -> None:
    runs = [trained(0, 0.8, loss=0.5, scale=1.0, lr=0.1), trained(0, 0.8, loss=0.4, scale=1.0, lr=1.0)]
    runs += [diverged(0, scale=2.0, lr=0.1), trained(0, 0.1, scale=2.0, lr=1.0)]
    runs[1].values["test accuracy"] = 0.6
    found = by_level(Results(runs), "scale")
    assert {level: run.cell.factors["lr"] for level, run in found[0].items()} == {1.0: 1.0, 2.0: 1.0}
    assert mean_accuracy(found) == {0: pytest.approx(0.35)}  # test accuracy of those
    assert validated(runs[2]) == (0.0, -math.inf)


def test_standardized_images_have_mean_0_and_spread_1() -> None:
    images = torch.randint(256, (7, 3, 5, 5), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    part = Part(images, torch.zeros(7))
    x = standardized(ImageData("made", "made", part, part, part))(images).double()
    assert x.mean().item() == pytest.approx(0, abs=1e-6) and x.std(unbiased=False).item() == pytest.approx(1, abs=1e-6)
    pixels = images.double()
    assert torch.allclose(x, (pixels - pixels.mean()) / pixels.std(unbiased=False), atol=1e-5)


CLAIMS = ("learning-rate", "initialization", "gradient-flow", "scale-invariance", "regularization", "landscape")


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_without_runs_is_undecided(name: str) -> None:
    judgement = find([name])[name].judge(Results([]))
    assert judgement.verdict == UNDECIDED
    assert {effect.pairs for effect in judgement.effects} <= {0}


def test_a_run_that_diverges_warns_nobody(tmp_path: Path) -> None:
    def run(cell: Cell, tools: Tools) -> Outcome:
        BatchNorm1d(2)(torch.full((4, 2), torch.inf))
        return Outcome({})

    def judge(results: Results) -> Judgement:
        return Judgement("", "", [], [])

    claim = Claim("x", "x", "x", "x", "x", "x", "x", "x", (), {}, run, judge)
    cell = Cell("x", {}, 0, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error", NonFiniteStatisticsWarning)
        run_cell(claim, cell, tmp_path, None, Engine())
    assert read(place(tmp_path, cell), Run).status == "finished"
