"""The 1-D network, its sequences, and the verdict it shares with the 2-D one: each network at its own best rate."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steadynorm.records import CONTRADICTED, CRASHED, DIVERGED, SUPPORTED, UNDECIDED, Run
from steadynorm.study.claims.conv1d import CLAIM, profiles
from steadynorm.study.models.systems import conv1d_net
from steadynorm.study.results import Results

from .made import made

T2 = 4.302652729911275
"""Student's t: 97.5% quantile with 2 degrees of freedom."""


def runs(gains: list[float], fast: bool = True) -> list[Run]:
    """Three seeds at two rates: without BN is best at 0.01, with BN at 0.1, where it gains so much in test accuracy."""
    found = []
    for seed, gain in enumerate(gains):
        found += [
            made({"network": "without BN", "lr": 0.01}, seed, 0.80, [0.6, 0.7, 0.75, 0.8]),
            made({"network": "without BN", "lr": 0.1}, seed, 0.99, [0.6, 0.6, 0.6, 0.6]),
            made({"network": "with BN", "lr": 0.01}, seed, 0.99, [0.6, 0.6, 0.6, 0.6]),
            made({"network": "with BN", "lr": 0.1}, seed, 0.80 + gain, [0.7, 0.9] if fast else [0.7, 0.7]),
        ]
    return found


def test_supported_at_the_best_rates() -> None:
    found = CLAIM.judge(Results(runs([0.10, 0.12, 0.14])))
    accuracy, faster, *matched = found.effects
    half = T2 * 2.0 / math.sqrt(3)  # the standard deviation of 10, 12 and 14 is 2
    assert (accuracy.estimate, accuracy.low, accuracy.high) == pytest.approx((12.0, 12 - half, 12 + half))
    # without BN its best, 0.8, is reached at step 40; with BN at step 20
    assert (faster.estimate, faster.low, faster.high, faster.pairs) == pytest.approx((2.0, 2.0, 2.0, 3))
    assert [effect.estimate for effect in matched] == pytest.approx([19.0, -7.0])
    assert not any(effect.decides for effect in matched)
    assert found.verdict == SUPPORTED
    assert "best rates: without BN 0.01 (the lowest tried), with BN 0.1 (the highest tried)" in found.finding


def test_contradicted_when_worse_and_slower() -> None:
    """With BN 0.8 is not reached in its 10 steps more than without BN: all 80 steps count."""
    slow = [
        made({"network": "with BN", "lr": 0.1}, seed, 0.80 + gain, [0.70, *[0.79] * 7])
        for seed, gain in enumerate([-0.2, -0.21, -0.22])
    ]
    plain = [made({"network": "without BN", "lr": 0.1}, seed, 0.80, [0.6, 0.8]) for seed in range(3)]
    found = CLAIM.judge(Results(slow + plain))
    assert found.effects[1].estimate == pytest.approx(20 / 80)
    assert found.verdict == CONTRADICTED


@pytest.mark.parametrize("gains", [[0.10, -0.12, 0.02], [0.10]])
def test_undecided_where_seeds_disagree_or_there_is_one(gains: list[float]) -> None:
    assert CLAIM.judge(Results(runs(gains))).verdict == UNDECIDED


def test_crashed_runs_and_runs_without_partner_are_left_out() -> None:
    found = CLAIM.judge(
        Results(
            [
                *runs([0.10, 0.12, 0.14]),
                made({"network": "with BN", "lr": 0.1}, 3, 0.1, [0.1]),
                made({"network": "without BN", "lr": 0.01}, 3, 0.0, status=CRASHED),
            ]
        )
    )
    assert found.effects[0].pairs == 3
    assert found.effects[0].estimate == pytest.approx(12.0)


def test_a_rate_that_diverges_is_not_chosen() -> None:
    """Nor does what a diverged run knew before count: its last validation accuracy does."""
    diverged = [made({"network": "with BN", "lr": 1.0}, seed, 0.1, [0.99, 0.1], status=DIVERGED) for seed in range(3)]
    found = CLAIM.judge(Results([*runs([0.10, 0.12, 0.14]), *diverged]))
    assert found.effects[0].estimate == pytest.approx(12.0)
    assert "with BN 0.1;" in found.finding or found.finding.endswith("with BN 0.1.")
    assert found.verdict == SUPPORTED


@pytest.mark.parametrize("kept", [[], [made({"network": "with BN", "lr": 0.1}, 0, 0.0, status=CRASHED)]])
def test_nothing_to_judge(kept: list[Run]) -> None:
    assert CLAIM.judge(Results(kept)).verdict == UNDECIDED


def test_profiles_are_thirds_of_columns() -> None:
    image = torch.randint(256, (2, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    found = profiles(image)
    ink = image[:, 0].double() / 255
    expected = torch.stack([ink[:, 0:10].mean(1), ink[:, 9:19].mean(1), ink[:, 18:28].mean(1)], 1)
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), expected, atol=1e-6)


def test_profiles_of_colour_are_of_its_middle_columns() -> None:
    image = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    ink = image.double().mean(1)[:, :, 2:30] / 255
    expected = torch.stack([ink[:, 0:11].mean(1), ink[:, 10:22].mean(1), ink[:, 21:32].mean(1)], 1)
    assert torch.allclose(profiles(image).double(), expected, atol=1e-6)


def test_the_network_is_the_one_described() -> None:
    """3·16·3+16 and 16·32·3+32 of the convolutions, 896·10+10 of the linear layer, 2·(16+32) of the normalizations."""
    plain, normalized = conv1d_net(batch_norm=False), conv1d_net(batch_norm=True)
    assert sum(p.numel() for p in plain.parameters()) == 160 + 1568 + 8970
    assert sum(p.numel() for p in normalized.parameters()) == 160 + 1568 + 8970 + 96
    assert [type(m).__name__ for m in plain] == ["Conv1d", "ReLU", "Conv1d", "ReLU", "Flatten", "Linear"]
    names = ["Conv1d", "BatchNorm1d", "Conv1d", "BatchNorm1d", "Flatten", "Linear"]
    assert [type(m).__name__ for m in normalized] == names
    assert plain(torch.zeros(2, 3, 28)).shape == (2, 10)


def test_both_networks_start_from_the_same_weights_by_he() -> None:
    torch.manual_seed(1)
    plain = [m for m in conv1d_net(batch_norm=False) if isinstance(m, nn.Conv1d | nn.Linear)]
    torch.manual_seed(1)
    normalized = [m for m in conv1d_net(batch_norm=True) if isinstance(m, nn.Conv1d | nn.Linear)]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(plain, normalized, strict=True))
    assert float(plain[-1].weight.detach().std()) == pytest.approx(math.sqrt(2 / 896), rel=0.05)
    assert all(not m.bias.any() for m in plain if m.bias is not None)
