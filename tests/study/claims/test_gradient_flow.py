"""Gradient norms by depth, and what the gradient-flow claim makes of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from steadynorm.records import CONTRADICTED, SUPPORTED, UNDECIDED, Cell, Run, Series
from steadynorm.study.claims.gradient_flow import (
    END,
    START,
    WITH,
    WITHOUT,
    gradient_norms,
    imbalance,
    judge,
    log_ratio,
)
from steadynorm.study.dense import dense
from steadynorm.study.gradients import loss_and_gradient
from steadynorm.study.results import Results

from .sweep_runs import crashed

X = torch.linspace(-2, 2, 60, dtype=torch.float64).sin().reshape(6, 10)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def by_hand(weights: list[torch.Tensor], eps: float | None) -> list[float]:
    """Norms of the gradients of a sigmoid network without biases, by the chain rule; with BN if there is an eps."""
    inputs, hats, invs, h = [], [], [], X
    for weight in weights[:-1]:
        inputs.append(h)
        z = h @ weight.t()
        if eps is not None:
            inv = (z.var(0, unbiased=False) + eps).rsqrt()
            hats.append((z - z.mean(0)) * inv)
            invs.append(inv)
            z = hats[-1]
        h = 1 / (1 + (-z).exp())
    inputs.append(h)
    probabilities = torch.softmax(h @ weights[-1].t(), 1)
    dz = (probabilities - torch.eye(3, dtype=torch.float64)[LABELS]) / len(X)
    norms = [(dz.t() @ h).norm().item()]
    for layer in range(len(weights) - 2, -1, -1):
        h = inputs[layer + 1]
        dz = (dz @ weights[layer + 1]) * h * (1 - h)
        if eps is not None:
            dz = invs[layer] * (dz - dz.mean(0) - hats[layer] * (dz * hats[layer]).mean(0))
        norms.append((dz.t() @ inputs[layer]).norm().item())
    return norms[::-1]


@pytest.mark.parametrize("batch_norm", [False, True])
def test_gradient_norms_are_those_of_the_chain_rule(batch_norm: bool) -> None:
    torch.manual_seed(0)
    model = dense(10, 8, 3, 3, batch_norm=batch_norm, activation="sigmoid").double()
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer in linear:
            layer.bias.zero_()
    expected = by_hand([layer.weight.detach() for layer in linear], 1e-5 if batch_norm else None)
    assert gradient_norms(model, (X, LABELS)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("mode", [False, True])
def test_the_model_is_left_as_it_was(mode: bool) -> None:
    model = nn.Sequential(*dense(10, 8, 2, 3, batch_norm=True, dropout=0.5)).double().train(mode)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    gradient_norms(model, (X, LABELS))
    assert model.training is mode and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_model_is_left_as_it_was_by_a_failure() -> None:
    model = dense(10, 8, 2, 3, batch_norm=True).double().eval()
    with pytest.raises(RuntimeError):
        loss_and_gradient(model, (X[:, :4], LABELS), list(model.parameters()))
    assert not model.training
    model.train()(X)
    assert model.get_submodule("2").num_batches_tracked == 1  # statistics are no longer held


def test_the_same_seed_draws_the_same_noise() -> None:
    model = dense(10, 8, 2, 3, batch_norm=False, dropout=0.5).double()
    parameters = list(model.parameters())
    losses = [loss_and_gradient(model, (X, LABELS), parameters, seed)[0] for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_imbalance_is_that_of_layers_of_equal_shape() -> None:
    assert log_ratio([5.0, 0.001, 7.0, 0.1, 3.0]) == pytest.approx(math.log(0.01))
    assert imbalance([5.0, 0.001, 7.0, 0.1, 3.0]) == imbalance([5.0, 0.1, 7.0, 0.001, 3.0]) == pytest.approx(2)
    assert imbalance([1.0, 0.0, 1.0, 1.0, 1.0]) == pytest.approx(30)
    assert math.isnan(imbalance([1.0, math.inf, 1.0, 1.0, 1.0]))
    assert math.isnan(imbalance([0.0, 0.0, 0.0, 0.0, 0.0]))


def made(seed: int, activation: str, network: str, start: float | None, end: float | None, depth: int = 10) -> Run:
    factors = {"activation": activation, "depth": depth, "network": network}
    values = {f"imbalance {START}": start, f"imbalance {END}": end, "test accuracy": 0.5}
    values |= {f"first ÷ last {START}": None if start is None else 10**-start, f"first ÷ last {END}": None}
    curves = {f"gradient norm {when}": Series([1.0, 2.0], [1.0, 0.5]) for when in (START, END)}
    return Run(Cell("made", {**factors}, seed, {}), "finished", "", values, curves)


def test_smaller_imbalance_in_all_supports_the_claim() -> None:
    runs = [
        made(s, a, n, 1.0 * (n == WITHOUT), 2.0) for s in (0, 1) for a in ("sigmoid", "relu") for n in (WITHOUT, WITH)
    ]
    assert judge(Results(runs)).verdict == UNDECIDED  # no difference after training
    runs = [
        made(s, a, n, 3.0 - (n == WITH), 2.5 - 2 * (n == WITH))
        for s in (0, 1)
        for a in ("sigmoid", "relu")
        for n in (WITHOUT, WITH)
    ]
    judgement = judge(Results(runs))
    assert judgement.verdict == SUPPORTED
    assert [effect.estimate for effect in judgement.effects] == pytest.approx([1, 2, 1, 2, 0, 0])
    assert judgement.tables[0].rows[0][3] == pytest.approx(1e-3)


def test_larger_imbalance_contradicts_and_opposite_ones_leave_it_undecided() -> None:
    def runs(gains: dict[str, float]) -> list[Run]:
        return [
            made(seed, activation, network, 5 - gain * (network == WITH), 5 - gain * (network == WITH))
            for seed in (0, 1)
            for activation, gain in gains.items()
            for network in (WITHOUT, WITH)
        ]

    assert judge(Results(runs({"sigmoid": -1, "relu": -2}))).verdict == CONTRADICTED
    assert judge(Results(runs({"sigmoid": 4, "relu": -2}))).verdict == UNDECIDED


def test_only_the_deepest_network_decides() -> None:
    runs = [
        made(seed, "relu", network, depth / 10 * (1 + (network == WITHOUT)), 1.0, depth)
        for seed in (0, 1)
        for depth in (10, 20)
        for network in (WITHOUT, WITH)
    ]
    effect = judge(Results(runs)).effects[0]
    assert effect.estimate == pytest.approx(2) and "20 layers" in effect.label


def test_runs_without_a_partner_or_a_finite_gradient_are_no_pair() -> None:
    runs = [made(s, "relu", n, 2.0, 1.0 if n == WITH else None) for s in (0, 1) for n in (WITHOUT, WITH)]
    runs += [made(2, "relu", WITH, 2.0, 1.0), crashed(2, activation="relu", depth=10, network=WITHOUT)]
    start, end, _ = judge(Results(runs)).effects
    assert (start.pairs, end.pairs) == (2, 0)
