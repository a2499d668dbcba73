"""Where batch normalization stands in the network, and how before and after it are judged."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from steadynorm.records import CONTRADICTED, SUPPORTED, UNDECIDED, Run
from steadynorm.study.claims.placement import CLAIM
from steadynorm.study.models.systems import placed_cnn
from steadynorm.study.results import Results

from .made import made


def runs(before: list[float], after: list[float]) -> list[Run]:
    """Test accuracies at 0.001, the best rate of both; at 0.01 they are the other way round and do not count."""
    found = []
    for seed, (one, other) in enumerate(zip(before, after, strict=True)):
        for place, accuracy, opposite in (("before", one, other), ("after", other, one), ("none", 0.5, 0.5)):
            found += [
                made({"place": place, "lr": 0.001}, seed, accuracy, [0.7, 0.8]),
                made({"place": place, "lr": 0.01}, seed, opposite, [0.9, 0.7]),
            ]
    return found


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([0.90, 0.91, 0.92], [0.80, 0.81, 0.83], SUPPORTED),
        ([0.80, 0.81, 0.83], [0.90, 0.91, 0.92], CONTRADICTED),
        ([0.90, 0.70], [0.70, 0.90], UNDECIDED),
        ([0.9], [0.8], UNDECIDED),
    ],
)
def test_verdict(before: list[float], after: list[float], verdict: str) -> None:
    assert CLAIM.judge(Results(runs(before, after))).verdict == verdict


def test_effects() -> None:
    found = CLAIM.judge(Results(runs([0.90, 0.92], [0.80, 0.80])))
    # both reach the best of after, 0.9 at rate 0.01 left out, 0.8 at 0.001, at step 20
    assert [effect.estimate for effect in found.effects] == pytest.approx([11.0, 1.0, 41.0, 30.0])
    assert [effect.decides for effect in found.effects] == [True, False, False, False]


def test_the_last_validation_accuracy_chooses_the_rate_not_the_best() -> None:
    found = CLAIM.judge(Results(runs([0.90, 0.92], [0.80, 0.80])))
    assert "before 0.001 (the lowest tried), after 0.001 (the lowest tried)" in found.finding


@pytest.mark.parametrize("channels", [1, 3])
def test_the_network_is_the_one_described(channels: int) -> None:
    """At 32x32, (3·32·9+32) + (32·64·9+64) + (64·6·6·64+64) + (64·10+10), and 2·(32+64) of the normalizations."""
    first = channels * 288 + 32
    rest = 18_496 + 147_520 + 650
    counts = {place: sum(p.numel() for p in placed_cnn(channels, 32, 10, place).parameters()) for place in PLACES}
    assert counts == {"none": first + rest, "before": first + rest + 192, "after": first + rest + 192}
    assert placed_cnn(channels, 32, 10, "after")(torch.zeros(2, channels, 32, 32)).shape == (2, 10)


PLACES = ("before", "after", "none")


def test_places() -> None:
    names = {place: [type(m).__name__ for m in placed_cnn(1, 28, 10, place)] for place in PLACES}
    assert names["none"][:3] == ["Conv2d", "ReLU", "MaxPool2d"]
    assert names["after"][:4] == ["Conv2d", "ReLU", "BatchNorm2d", "MaxPool2d"]
    assert names["before"][:3] == ["Conv2d", "BatchNorm2d", "MaxPool2d"]
    assert names["none"][-4:] == ["Flatten", "Linear", "ReLU", "Linear"]


def test_what_leaves_each_place() -> None:
    """Before: the ReLU of something of mean 0 and variance 1. After: mean 0 and variance 1 itself."""
    x = torch.rand(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(2)
    before = placed_cnn(1, 28, 10, "before")[:2](x).detach().double()
    torch.manual_seed(2)
    after = placed_cnn(1, 28, 10, "after")[:3](x).detach().double()
    torch.manual_seed(2)
    conv = placed_cnn(1, 28, 10, "none")[0](x).detach().double()

    def normalized(value: torch.Tensor) -> torch.Tensor:
        mean, var = value.mean((0, 2, 3), keepdim=True), value.var((0, 2, 3), keepdim=True, correction=0)
        return (value - mean) / (var + 1e-5).sqrt()

    assert torch.allclose(before, nn.functional.relu(normalized(conv)), atol=1e-4)
    assert torch.allclose(after, normalized(nn.functional.relu(conv)), atol=1e-4)
