"""Layers that whiten, seconds to a common accuracy, and the verdict."""

from __future__ import annotations

import pytest
import torch

from steadynorm.records import CONTRADICTED, CRASHED, SUPPORTED, UNDECIDED, Run
from steadynorm.study.claims.whitening import CLAIM, NORMS
from steadynorm.study.results import Results

from .made import made

CURVES = {name: [0.4, 0.6, 0.8] if name == "BN" else [0.5, 0.7, 0.7] for name in NORMS}


def runs(**seconds: float) -> list[Run]:
    """BN has 0.7 (0.01 less with each seed) at step 30, the others at 20; by default a step of BN takes 1 s."""
    found = []
    for name in NORMS:
        for seed in range(3):
            run = made({"norm": name}, seed, 0.9, CURVES[name], {"validation loss": [1.0, 0.5, 0.4]})
            of = {"whitening, exact": "exact", "whitening, Newton": "newton"}.get(name, "other")
            run.seconds["training"] = 30 * seconds.get(of, 1.0) * (1 + 0.01 * seed * (name != "BN"))
            found.append(run)
    return found


@pytest.mark.parametrize(
    ("exact", "newton", "verdict"),
    [(4.0, 3.0, SUPPORTED), (0.5, 0.5, CONTRADICTED), (4.0, 0.5, UNDECIDED), (1.5, 4.0, UNDECIDED)],
)
def test_verdict(exact: float, newton: float, verdict: str) -> None:
    assert CLAIM.judge(Results(runs(exact=exact, newton=newton))).verdict == verdict


def test_ratios_by_hand() -> None:
    """20 steps of 6 s against 30 of 1 s; BN's best is never reached, so all 30 of its steps count."""
    found = CLAIM.judge(Results([run for run in runs(exact=6.0) if run.cell.seed == 0])).effects
    assert found[0].estimate == pytest.approx(20 * 6 / 30)
    assert found[3].estimate == pytest.approx(1)
    assert found[6].estimate == pytest.approx(6)
    assert [effect.decides for effect in found] == [True, True, *[False] * 10]


def test_undecided_without_a_partner() -> None:
    kept = [run for run in runs(exact=4.0, newton=4.0) if run.cell.factors["norm"] != "BN"]
    crashed = [made({"norm": "BN"}, seed, 0, status=CRASHED) for seed in range(3)]
    assert CLAIM.judge(Results(kept + crashed)).verdict == UNDECIDED


@pytest.mark.parametrize("name", list(NORMS))
def test_how_far_each_layer_decorrelates(name: str) -> None:
    """Correlations within the group that a layer whitens; BN leaves them."""
    torch.manual_seed(0)
    common = torch.randn(200, 1, 3, 3)
    x = common + torch.randn(200, 16, 3, 3)
    y = NORMS[name](16).train()(x).detach().transpose(0, 1).flatten(1)
    correlation = torch.corrcoef(y) - torch.eye(16)
    short = 0.25 if name == "whitening, Newton" else 0.05  # five steps from a common factor of 16 channels
    assert 1 - short < y.var(1, correction=0).min() <= y.var(1, correction=0).max() < 1.001
    inside, outside = correlation[:8, :8].abs().max(), correlation[:8, 8:].abs().max()
    if name == "BN":
        assert inside > 0.4
    elif "groups" in name:
        assert inside < 0.05 < 0.1 < outside
    else:
        assert max(inside, outside) < 0.1
