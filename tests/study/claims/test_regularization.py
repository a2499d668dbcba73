"""What the regularization claim makes of its runs, and the smaller training sets."""

from __future__ import annotations

import pytest
import torch

from steadynorm.records import CONTRADICTED, SUPPORTED, UNDECIDED, Cell, Run
from steadynorm.study.claims.regularization import CLAIM, WITH, WITHOUT, fewer, judge
from steadynorm.study.data import ImageData, Part
from steadynorm.study.results import Results
from steadynorm.study.tools import Tools

from .sweep_runs import crashed
from .sweep_runs import trained as made


def run(seed: int, network: str, dropout: float, train: float, test: float, examples: int = 100) -> Run:
    found = made(seed, test, loss=1.5, network=network, dropout=dropout, examples=examples)
    found.values.update({"accuracy on training images": train, "loss on training images": 0.5})
    return found


def grid(seed: int, without: tuple[float, float, float], with_: tuple[float, float, float]) -> list[Run]:
    """Test accuracy without dropout and at two rates of it; training accuracy is 1."""
    return [
        run(seed, network, dropout, 1.0, accuracy)
        for network, accuracies in ((WITHOUT, without), (WITH, with_))
        for dropout, accuracy in zip((0.0, 0.2, 0.5), accuracies, strict=True)
    ]


def test_less_overfitting_and_less_use_for_dropout_support_the_claim() -> None:
    runs = [found for seed in (0, 1) for found in grid(seed, (0.80, 0.86, 0.84), (0.88, 0.89, 0.85))]
    judgement = judge(Results(runs))
    assert judgement.verdict == SUPPORTED
    smaller, needed, instead, alone, losses = judgement.effects
    assert smaller.estimate == pytest.approx(8)  # 20 − 12 points
    assert needed.estimate == pytest.approx(5)  # dropout adds 6, to BN 1
    assert instead.estimate == pytest.approx(2)  # 88 − 86
    assert alone.estimate == pytest.approx(8)
    assert losses.estimate == pytest.approx(0)  # 1 nat each


def test_more_overfitting_contradicts_it() -> None:
    runs = [found for seed in (0, 1) for found in grid(seed, (0.88, 0.89, 0.85), (0.80, 0.86, 0.84))]
    assert judge(Results(runs)).verdict == CONTRADICTED


def test_only_one_of_both_is_undecided() -> None:
    runs = [found for seed in (0, 1) for found in grid(seed, (0.80, 0.81, 0.79), (0.88, 0.92, 0.91))]
    assert judge(Results(runs)).verdict == UNDECIDED


def test_sizes_of_the_training_set_are_averaged() -> None:
    runs = [found for seed in (0, 1) for found in grid(seed, (0.80, 0.86, 0.84), (0.88, 0.89, 0.85))]
    for seed in (0, 1):
        for network in (WITHOUT, WITH):
            runs += [run(seed, network, dropout, 1.0, 0.9, examples=500) for dropout in (0.0, 0.2, 0.5)]
    judgement = judge(Results(runs))
    assert [effect.estimate for effect in judgement.effects[:2]] == pytest.approx([4, 2.5])


def test_a_seed_with_a_crashed_run_is_left_out() -> None:
    runs = [found for seed in (0, 1, 2) for found in grid(seed, (0.80, 0.86, 0.84), (0.88, 0.89, 0.85))]
    runs[-1] = crashed(2, network=WITH, dropout=0.5, examples=100)
    assert {effect.pairs for effect in judge(Results(runs)).effects} == {2}


def test_nothing_finished_is_undecided() -> None:
    assert (
        judge(Results([crashed(seed, network=WITH, dropout=0.0, examples=9) for seed in (0, 1)])).verdict == UNDECIDED
    )


def test_fewer_training_images_are_drawn_by_the_seed() -> None:
    images = torch.arange(50, dtype=torch.uint8).reshape(50, 1, 1, 1)
    part = Part(images, torch.arange(50))
    data = ImageData("made", "made", part, part, part)
    some, again, other = (fewer(data, 20, seed) for seed in (1, 1, 2))
    assert torch.equal(some.train.labels, again.train.labels) and not torch.equal(some.train.labels, other.train.labels)
    assert len(set(some.train.labels.tolist())) == 20
    assert torch.equal(some.train.images.flatten(), some.train.labels.to(torch.uint8))
    assert some.validation is part and some.test is part


def test_a_run_that_can_fit_its_few_images_does_and_sees_no_others() -> None:
    settings = {**CLAIM.presets["smoke"].settings, "data": "digits", "steps": 60, "lr": 0.01}
    cell = Cell("regularization", {"network": WITH, "dropout": 0.0, "examples": 50}, 0, settings)
    torch.manual_seed(0)
    values = CLAIM.run(cell, Tools(cell)).values
    assert values["accuracy on training images"] == 1.0
    assert 0.3 < (values["test accuracy"] or 0) < 0.95
