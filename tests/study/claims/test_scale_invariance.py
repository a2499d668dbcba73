"""The identities and the blow-up, against values worked out by hand, and what the claim makes of them."""

from __future__ import annotations

import math

import pytest
import torch

from steadynorm.records import CONTRADICTED, SUPPORTED, UNDECIDED, Cell, Run
from steadynorm.study.claims.scale_invariance import (
    AROUND,
    CLAIM,
    IDENTITIES,
    THROUGH,
    descend,
    identities,
    judge,
    layer,
    normalized,
)
from steadynorm.study.results import Results
from steadynorm.study.tools import Tools

from .sweep_runs import crashed

U = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0], [-2.0, 4.0]], dtype=torch.float64)
WEIGHT = torch.tensor([[0.3, -0.7], [1.1, 0.2], [-0.4, 0.9]], dtype=torch.float64)
TOWARDS = torch.tensor([[1.0, 0.0, 2.0], [0.5, -1.0, 0.0], [0.0, 3.0, 1.0], [-2.0, 1.0, 1.0]], dtype=torch.float64)


def test_the_layer_is_the_paper_s() -> None:
    y, to_weight, to_u = layer(U, WEIGHT, TOWARDS, 1e-5)
    z = U @ WEIGHT.t()
    inv = 1 / (((z - z.mean(0)) ** 2).mean(0) + 1e-5).sqrt()
    hat = (z - z.mean(0)) * inv
    dz = inv * (TOWARDS - TOWARDS.mean(0) - hat * (TOWARDS * hat).mean(0))
    for found, expected in ((y, hat), (to_weight, dz.t() @ U), (to_u, dz @ WEIGHT)):
        assert torch.allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_the_identities_hold_and_the_usual_eps_breaks_them() -> None:
    values, series = identities(U, WEIGHT, TOWARDS, 3)
    assert all(values[name] < 1e-13 for name in IDENTITIES)
    assert series["output"].x == pytest.approx([1e-3, 1e-2, 0.1, 1, 10, 100, 1000])
    # at a = 0.001 a variance v becomes 1e-6 v, so the output shrinks by sqrt(1e-6 v / (1e-6 v + 1e-5))
    z = U @ WEIGHT.t()
    variance = z.var(0, unbiased=False)
    hat = (z - z.mean(0)) / (variance + 1e-5).sqrt()
    shrunk = 1e-3 * (z - z.mean(0)) / (1e-6 * variance + 1e-5).sqrt()
    expected = ((shrunk - hat).norm() / hat.norm()).item()
    assert values["output, eps 1e-5"] == series["output, eps 1e-5"].y[0] == pytest.approx(expected, rel=1e-9)
    assert expected > 0.1


def test_around_the_statistics_the_bias_grows_by_the_same_step_and_the_loss_stays() -> None:
    found = descend(U, WEIGHT, TOWARDS, 8, 0.5, through=False, only_bias=True)
    z = U @ WEIGHT.t()
    inv = 1 / (z.var(0, unbiased=False) + 1e-5).sqrt()
    hat = (z - z.mean(0)) * inv
    step = 0.5 * (2 * (hat - TOWARDS - 1).sum(0) / TOWARDS.numel() * inv).norm().item()
    assert found["bias"].y == pytest.approx([step * n for n in range(9)], rel=1e-9)
    assert found["loss"].y == pytest.approx([((hat - TOWARDS - 1) ** 2).mean().item()] * 9, rel=1e-12)


def test_through_the_statistics_the_bias_stays() -> None:
    found = descend(U, WEIGHT, TOWARDS, 8, 0.5, through=True, only_bias=True)
    assert max(value or 0.0 for value in found["bias"].y) < 1e-14


def test_the_gradient_goes_through_the_statistics_or_around_them() -> None:
    for through in (True, False):
        x = U.clone().requires_grad_()
        y = normalized(x, through)
        (gradient,) = torch.autograd.grad((y * U.flip(0)).sum(), x)
        inv = 1 / (U.var(0, unbiased=False) + 1e-5).sqrt()
        dy, hat = U.flip(0), (U - U.mean(0)) * inv
        expected = inv * (dy - dy.mean(0) - hat * (dy * hat).mean(0)) if through else inv * dy
        assert torch.allclose(gradient, expected, rtol=1e-12, atol=1e-13)


def test_a_descent_that_overflows_ends_there() -> None:
    found = descend(U, WEIGHT, TOWARDS, 50, 1e200, through=False, only_bias=False)
    assert found["weight"].y[-1] is None and found["weight"].x[-1] < 50


def test_a_run_is_complete() -> None:
    cells = CLAIM.cells("smoke", seeds=4)
    runs = []
    for cell in cells:
        torch.manual_seed(cell.seed)
        outcome = CLAIM.run(cell, Tools(cell))
        runs.append(Run(cell, outcome.status, "", outcome.values, outcome.series))
    judgement = judge(Results(runs))
    assert judgement.verdict == SUPPORTED
    assert judgement.effects[1].estimate == pytest.approx(2, rel=1e-6)  # 20 steps against 10
    assert all(line.x for figure in judgement.figures for panel in figure.panels for line in panel.lines)


def made(seed: int, error: float, half: float, end: float, loss: float, kept: float) -> list[Run]:
    values: dict[str, float | None] = {f"{n}{s}": error for n in IDENTITIES for s in ("", ", eps 1e-5")}
    drift = {"bias at half time, bias learned": half, "bias at the end, bias learned": end}
    losses = {"loss at the start, bias learned": 2.0, "loss at the end, bias learned": loss}
    through = {**values, **losses, "bias at half time, bias learned": 0.0, "bias at the end, bias learned": kept}
    pairs = ((THROUGH, through), (AROUND, {**drift, **losses}))
    return [Run(Cell("made", {"gradient": level}, seed, {}), "finished", "", {**found}) for level, found in pairs]


def test_what_supports_and_what_contradicts() -> None:
    def verdict(*numbers: float) -> str:
        return judge(Results([run for seed in (0, 1) for run in made(seed, *numbers)])).verdict

    assert verdict(1e-15, 5.0, 10.0, 2.0, 0.0) == SUPPORTED
    assert verdict(1e-9, 5.0, 10.0, 2.0, 0.0) == UNDECIDED  # the identities fail
    assert verdict(1e-15, 5.0, 10.0, 1.9, 0.0) == UNDECIDED  # the loss changes
    assert verdict(1e-15, 5.0, 10.0, 2.0, 1e-3) == UNDECIDED  # the bias moves where it should not
    assert verdict(1e-9, 10.0, 5.0, 1.9, 1e-3) == CONTRADICTED


def test_margins_are_in_decades() -> None:
    exact, growing, still, held = judge(Results([r for s in (0, 1) for r in made(s, 1e-14, 5, 10, 2, 1e-12)])).effects
    assert exact.estimate == pytest.approx(4)
    assert growing.estimate == pytest.approx(2)
    assert still.estimate == pytest.approx(7)  # a change of 0 counts as 1e-17
    assert held.estimate == pytest.approx(2)


def test_crashed_and_missing_runs_are_left_out() -> None:
    runs = [*made(0, 1e-15, 5, 10, 2, 0), *made(1, 1e-15, 5, 10, 2, 0)[:1], crashed(1, gradient=AROUND)]
    judgement = judge(Results(runs))
    assert judgement.verdict == UNDECIDED
    assert [effect.pairs for effect in judgement.effects] == [2, 1, 1, 2]
    assert not math.isnan(judgement.effects[1].estimate or 0.0)
    assert (
        judge(Results([crashed(seed, gradient=level) for seed in (0, 1) for level in (THROUGH, AROUND)])).verdict
        == UNDECIDED
    )
