"""Recurrent networks against LSTM cells written out, step by step, and the verdict."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from steadynorm import BatchNorm1d
from steadynorm.errors import InvalidArgumentError
from steadynorm.records import CONTRADICTED, CRASHED, SUPPORTED, UNDECIDED, Run
from steadynorm.study.claims.sequence import CLAIM
from steadynorm.study.models.recurrent import NORMS, Recurrent
from steadynorm.study.results import Results

from .made import made


def runs(**accuracies: float) -> list[Run]:
    return [
        made({"norm": norm, "lr": 0.003}, seed, accuracies.get(norm, 0.8) + 0.01 * seed * (norm == "batch"), [0.5, 0.7])
        for norm in NORMS
        for seed in range(3)
    ]


@pytest.mark.parametrize(
    ("accuracies", "verdict"),
    [
        ({"batch": 0.6}, SUPPORTED),
        ({"batch": 0.95}, CONTRADICTED),
        ({"batch": 0.7, "layer": 0.5}, UNDECIDED),
        ({}, UNDECIDED),
    ],
)
def test_verdict(accuracies: dict[str, float], verdict: str) -> None:
    assert CLAIM.judge(Results(runs(**accuracies))).verdict == verdict


def test_effects_by_hand_and_without_a_partner() -> None:
    """BN has 0.61 on average, the others 0.8."""
    found = CLAIM.judge(Results(runs(batch=0.6)))
    assert [effect.estimate for effect in found.effects[:4]] == pytest.approx([19, 19, 19, 0], abs=1e-9)
    kept = [run for run in runs(batch=0.6) if run.cell.factors["norm"] != "layer"]
    crashed = [made({"norm": "layer", "lr": 0.003}, seed, 0, status=CRASHED) for seed in range(3)]
    assert CLAIM.judge(Results(kept + crashed)).verdict == UNDECIDED


def by_batch(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()


def by_example(x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()


def written_out(model: Recurrent, images: Tensor) -> Tensor:
    """In train mode, from the weights alone, in float64."""
    w = {name: value.detach().double() for name, value in model.named_parameters()}
    rows = images.double()[:, 0]
    h = c = torch.zeros(len(images), model.width, dtype=torch.float64)
    for step in range(rows.shape[1]):
        x, s = rows[:, step] @ w["input.weight"].T, h @ w["state.weight"].T
        if model.norm == "batch":
            x, s = w["of_sum.weight"] * by_batch(x + s) + w["of_sum.bias"], 0.0
        elif model.norm == "recurrent batch":
            x, s = w["of_input.weight"] * by_batch(x), w["of_state.weight"] * by_batch(s)
        elif model.norm == "layer":
            x, s = w["of_input.weight"] * by_example(x), w["of_state.weight"] * by_example(s)
        f, i, o, g = (x + s + w["bias"]).split(model.width, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        cell = c
        if model.norm == "recurrent batch":
            cell = w["of_cell.weight"] * by_batch(c) + w["of_cell.bias"]
        elif model.norm == "layer":
            cell = w["of_cell.weight"] * by_example(c) + w["of_cell.bias"]
        h = torch.sigmoid(o) * torch.tanh(cell)
    return h @ w["classify.weight"].T + w["classify.bias"]


@pytest.mark.parametrize("norm", NORMS)
def test_equals_cells_written_out(norm: str) -> None:
    torch.manual_seed(0)
    model, images = Recurrent(7, 6, 5, 10, norm), torch.rand(9, 1, 6, 7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    torch.testing.assert_close(model(images).double(), written_out(model, images), rtol=1e-3, atol=1e-4)


def test_none_is_torchs_lstm() -> None:
    torch.manual_seed(0)
    model, images = Recurrent(7, 6, 5, 10, "none"), torch.rand(3, 1, 6, 7)
    lstm = nn.LSTM(7, 5, batch_first=True)
    order = torch.cat([torch.arange(5) + 5 * gate for gate in (1, 0, 3, 2)])  # torch's is i, f, g, o
    lstm.load_state_dict(
        {
            "weight_ih_l0": model.input.weight[order],
            "weight_hh_l0": model.state.weight[order],
            "bias_ih_l0": model.bias[order],
            "bias_hh_l0": torch.zeros(20),
        }
    )
    torch.testing.assert_close(model(images), model.classify(lstm(images[:, 0])[0][:, -1]))


def test_statistics_of_each_step_or_of_all() -> None:
    images = torch.rand(9, 1, 6, 7) * torch.arange(1.0, 7.0).reshape(1, 1, 6, 1)
    own, shared = Recurrent(7, 6, 5, 10, "recurrent batch"), Recurrent(7, 6, 5, 10, "batch")
    own(images), shared(images)
    layers = [layer for layer in own.of_input.modules() if isinstance(layer, BatchNorm1d)]
    assert len(layers) == 6
    for step, layer in enumerate(layers):
        mean = own.input(images[:, 0, step]).mean(0)
        torch.testing.assert_close(layer.running_mean, 0.1 * mean.detach())
    assert int(shared.of_sum.num_batches_tracked) == 6  # type: ignore[arg-type]
    assert own.of_input.weight.unique().tolist() == pytest.approx([0.1])
    assert own.of_state.bias is None


def test_the_same_weights_whatever_the_norm() -> None:
    found = []
    for norm in NORMS:
        torch.manual_seed(4)
        model = Recurrent(7, 6, 5, 10, norm)
        found.append([model.input.weight, model.state.weight, model.bias, model.classify.weight])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_images_of_several_channels_and_a_wrong_norm() -> None:
    assert Recurrent(3 * 8, 8, 5, 10, "layer")(torch.rand(2, 3, 8, 8)).shape == (2, 10)
    with pytest.raises(InvalidArgumentError, match=r"Recurrent: expected a norm of none, .*, got 'group'"):
        Recurrent(7, 6, 5, 10, "group")
