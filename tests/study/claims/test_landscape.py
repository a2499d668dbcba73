"""Santurkar's probes against a loss that can be worked out by hand, the noise, and what the claim makes of its runs."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadynorm.records import CONTRADICTED, SUPPORTED, UNDECIDED, Cell, Run, Series
from steadynorm.study.claims.landscape import (
    NOISY,
    PROBES,
    STRIDES,
    WITH,
    WITHOUT,
    Noise,
    add_noise,
    along_gradient,
    judge,
    typical,
)
from steadynorm.study.dense import dense
from steadynorm.study.results import Results

from .sweep_runs import crashed

X = torch.linspace(-2, 2, 60, dtype=torch.float64).sin().reshape(6, 10)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def test_the_probes_are_those_of_softmax_regression_by_hand() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 3, bias=False)).double()
    onehot = torch.eye(3, dtype=torch.float64)[LABELS]

    def at(weight: torch.Tensor) -> tuple[float, torch.Tensor]:
        probabilities = torch.softmax(X @ weight.t(), 1)
        return -(probabilities * onehot).sum(1).log().mean().item(), (probabilities - onehot).t() @ X / len(X)

    start = model.get_parameter("0.weight").detach().clone()
    loss, gradient = at(start)
    moved = [at(start - stride * 0.3 * gradient) for stride in STRIDES]
    losses = [loss, *(there for there, _ in moved)]
    changes = [(other - gradient).norm().item() for _, other in moved]
    slopes = [change / (stride * 0.3 * gradient.norm().item()) for change, stride in zip(changes, STRIDES, strict=True)]
    found = along_gradient(model, (X, LABELS), 0.3, 0)
    expected = {"loss range": max(losses) - min(losses), "gradient change": max(changes), "smoothness": max(slopes)}
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("mode", [False, True])
def test_the_model_is_left_as_it_was(mode: bool) -> None:
    model = dense(10, 8, 2, 3, batch_norm=True).double()
    add_noise(model)
    model.train(mode)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    along_gradient(model, (X, LABELS), 0.3, 5)
    assert model.training is mode and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_weights_are_put_back_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = dense(10, 8, 2, 3, batch_norm=True).double()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    calls = []
    original = F.cross_entropy

    def second_fails(*arguments: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("in the middle")
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "cross_entropy", second_fails)
    with pytest.raises(RuntimeError, match="in the middle"):
        along_gradient(model, (X, LABELS), 0.3, 0)
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


def test_a_step_that_overflows_gives_what_is_not_finite() -> None:
    model = dense(10, 8, 2, 3, batch_norm=False).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1e150)
    assert not all(map(math.isfinite, along_gradient(model, (X, LABELS), 1.0, 0).values()))


def test_noise_has_the_mean_and_spread_it_draws() -> None:
    torch.manual_seed(0)
    x = torch.zeros(4000, 3, dtype=torch.float64)
    y = Noise(shift=0.5, spread=0.5)(x)  # of zeros only the shift is left
    torch.manual_seed(0)
    drawn = []
    for _ in range(2):  # the scale is drawn first
        drawn.append([torch.rand(1, 3, dtype=torch.float64)[0] for _ in range(2)])
        torch.randn_like(x)
    assert torch.allclose(y.mean(0), drawn[1][0] - 0.5, atol=0.03)
    assert torch.allclose(y.std(0), drawn[1][1] / 2, atol=0.03)
    assert not torch.equal(y[0], y[1])


def test_noise_is_none_in_eval_mode() -> None:
    x = torch.randn(4, 3, 5, 5)
    noise = Noise()
    assert not torch.equal(noise(x), x)
    assert torch.equal(noise.eval()(x), x)


def test_noise_is_between_normalization_and_activation() -> None:
    torch.manual_seed(0)
    model, plain = (dense(10, 8, 2, 3, batch_norm=True).double() for _ in range(2))
    plain.load_state_dict(model.state_dict())
    add_noise(model)
    assert torch.allclose(model.eval()(X), plain.eval()(X), rtol=1e-12, atol=1e-14)
    seen: list[torch.Tensor] = []
    block = model.get_submodule("2")

    def see(layer: nn.Module, given: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        seen.extend((given[0], out))

    block.get_submodule("1").register_forward_hook(see)
    y = block(X[:, :8])
    assert (seen[0] < 0).any() and torch.equal(y, seen[1].relu())


def made(seed: int, network: str, probe: float, accuracy: float) -> Run:
    series = {name: Series([0.0, 1.0, 2.0], [probe / 2, None, 2 * probe]) for name in PROBES}
    return Run(Cell("made", {"network": network}, seed, {}), "finished", "", {"test accuracy": accuracy}, series)


def grid(without: float, with_: float) -> list[Run]:
    found = ((WITHOUT, without, 0.8), (WITH, with_, 0.9), (NOISY, with_, 0.85))
    return [made(seed, network, probe, accuracy) for seed in (0, 1) for network, probe, accuracy in found]


def test_what_supports_and_what_contradicts() -> None:
    judgement = judge(Results(grid(6.0, 2.0)))
    assert judgement.verdict == SUPPORTED
    assert [effect.estimate for effect in judgement.effects] == pytest.approx([3, 3, 3, 10, 5, -5])
    assert judge(Results(grid(2.0, 6.0))).verdict == CONTRADICTED
    assert judge(Results(grid(2.0, 2.0))).verdict == UNDECIDED


def test_a_series_counts_by_its_geometric_mean_where_it_is_finite() -> None:
    assert typical(made(0, WITH, 4.0, 0.9), "smoothness") == pytest.approx(4)  # of 2 and 8


def test_crashed_and_missing_runs_are_no_pair() -> None:
    runs = [*grid(6.0, 2.0), made(2, WITHOUT, 1.0, 0.5), crashed(2, network=WITH)]
    assert [effect.pairs for effect in judge(Results(runs)).effects] == [2] * 6
    assert judge(Results([crashed(seed, network=WITHOUT) for seed in (0, 1)])).verdict == UNDECIDED
