"""The normalizations share what their names say, and batch normalization is judged against each of the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steadynorm import BatchNorm2d, BatchRenorm2d, GhostBatchNorm2d
from steadynorm.errors import InvalidArgumentError
from steadynorm.records import CONTRADICTED, CRASHED, SUPPORTED, UNDECIDED, Run
from steadynorm.study.claims.norms import CLAIM
from steadynorm.study.models.norms import normalization, normalized_cnn, slim_cnn
from steadynorm.study.results import Results

from .made import made

NORMS = ("none", "batch", "group", "layer", "instance")


def runs(**accuracies: list[float]) -> list[Run]:
    """Test accuracies of each seed, at one rate."""
    return [
        made({"norm": norm, "lr": 0.01}, seed, accuracy)
        for norm in NORMS
        for seed, accuracy in enumerate(accuracies.get(norm, [0.5, 0.5, 0.5]))
    ]


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ({"batch": [0.90, 0.91, 0.92]}, SUPPORTED),
        ({"batch": [0.90, 0.91, 0.92], "none": [0.99, 0.99, 0.99]}, SUPPORTED),
        ({"batch": [0.90, 0.91, 0.92], "layer": [0.96, 0.97, 0.99]}, CONTRADICTED),
        ({"batch": [0.90, 0.91, 0.92], "instance": [0.91, 0.89, 0.93]}, UNDECIDED),
    ],
)
def test_verdict(accuracies: dict[str, list[float]], verdict: str) -> None:
    assert CLAIM.judge(Results(runs(**accuracies))).verdict == verdict


def test_effects_are_batch_minus_each() -> None:
    found = CLAIM.judge(Results(runs(batch=[0.9, 0.9, 0.9], layer=[0.6, 0.7, 0.8], none=[0.1, 0.1, 0.1])))
    assert [effect.estimate for effect in found.effects] == pytest.approx([40.0, 20.0, 40.0, 80.0])
    assert [effect.decides for effect in found.effects] == [True, True, True, False]


def test_undecided_without_runs_of_one_normalization() -> None:
    kept = [run for run in runs(batch=[0.9, 0.91, 0.92]) if run.cell.factors["norm"] != "group"]
    crashed = [made({"norm": "group", "lr": 0.01}, seed, 0.0, status=CRASHED) for seed in range(3)]
    found = CLAIM.judge(Results(kept + crashed))
    assert found.verdict == UNDECIDED
    assert "batch − group: not measured" in found.finding


def by_hand(x: Tensor, shape: tuple[int, ...], over: tuple[int, ...]) -> Tensor:
    parts = x.double().reshape(shape)
    mean, var = parts.mean(over, keepdim=True), parts.var(over, keepdim=True, correction=0)
    return ((parts - mean) / (var + 1e-5).sqrt()).reshape(x.shape)


@pytest.mark.parametrize(
    ("name", "shape", "over"),
    [
        ("batch", (32, 16, 5, 5), (0, 2, 3)),
        ("ghost", (2, 16, 16, 5, 5), (1, 3, 4)),
        ("renorm", (32, 16, 5, 5), (0, 2, 3)),
        ("group", (32, 8, 2, 5, 5), (2, 3, 4)),
        ("layer", (32, 16, 5, 5), (1, 2, 3)),
        ("instance", (32, 16, 5, 5), (2, 3)),
    ],
)
def test_what_shares_statistics(name: str, shape: tuple[int, ...], over: tuple[int, ...]) -> None:
    x = torch.randn(32, 16, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    layer = normalization(name, steps=100)(16)
    assert torch.allclose(layer(x).double(), by_hand(x, shape, over), atol=1e-5)
    assert sum(p.numel() for p in layer.parameters()) == 32


def test_none_is_nothing_and_other_names_are_refused() -> None:
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(normalization("none")(4)(x), x)
    with pytest.raises(InvalidArgumentError, match=r"normalization: expected one of none, batch, .*, got 'weight'"):
        normalization("weight")


def test_the_schedule_of_renormalization_ends_at_half_of_the_steps() -> None:
    """The paper's 5,000, 25,000 and 40,000 steps, as shares of 80,000."""
    layer = normalization("renorm", steps=80_000)(4)
    assert isinstance(layer, BatchRenorm2d)
    assert callable(layer.rmax) and callable(layer.dmax)
    assert [layer.rmax(step) for step in (0, 5_000, 22_500, 40_000, 79_999)] == [1, 1, 2, 3, 3]
    assert [layer.dmax(step) for step in (0, 5_000, 15_000, 25_000, 79_999)] == [0, 0, 2.5, 5, 5]


@pytest.mark.parametrize(("name", "kind"), [("batch", BatchNorm2d), ("ghost", GhostBatchNorm2d)])
def test_networks_differ_in_nothing_else(name: str, kind: type) -> None:
    """Convolutions 320 + 18,496 + 36,928, dense 36,928 + 650; the slim one 160 + 4,640 + 9,248 + 2,890."""
    plain, normalized = (normalized_cnn(1, 28, 10, normalization(norm)) for norm in ("none", name))
    assert sum(p.numel() for p in plain.parameters()) == 93_322
    assert sum(p.numel() for p in normalized.parameters()) == 93_322 + 2 * (32 + 64 + 64)
    assert sum(type(m) is kind for m in normalized.modules()) == 3
    assert sum(p.numel() for p in slim_cnn(1, 28, 10, normalization("none")).parameters()) == 16_938
    assert slim_cnn(1, 28, 10, normalization(name))(torch.rand(1, 1, 28, 28)).shape == (1, 10)


def test_same_seed_same_weights_in_every_network() -> None:
    weights = []
    for norm in NORMS:
        torch.manual_seed(4)
        model = normalized_cnn(1, 28, 10, normalization(norm))
        weights.append([p for p in model.parameters() if p.dim() > 1])
    assert all(torch.equal(a, b) for others in weights[1:] for a, b in zip(weights[0], others, strict=True))
