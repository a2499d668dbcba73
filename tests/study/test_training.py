"""The training loop does what a hand-written one does, the same way every time, for both networks alike."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steadynorm.records import Run
from steadynorm.study.data import ImageData, load
from steadynorm.study.models import cnn
from steadynorm.study.training import Settings, evaluate, steps_per_epoch, train

from ..support.study import Silent, small_data

BUILD = partial(cnn, 1, 28, 10)


def run(data: ImageData, settings: Settings, batch_norm: bool = True, seed: int = 0) -> tuple[Run, Silent]:
    watcher = Silent()
    return train(partial(BUILD, batch_norm=batch_norm), "v", data, settings, seed, watcher.step), watcher


def without_seconds(result: Run) -> Run:
    return replace(result, epochs=[replace(epoch, seconds=0) for epoch in result.epochs])


def test_same_seed_same_bits() -> None:
    settings = Settings(2, 16, 1e-3, "adam")
    first, second, other = (without_seconds(run(small_data(), settings, seed=seed)[0]) for seed in (0, 0, 1))
    assert first == second
    assert first.epochs != other.epochs


def test_both_networks_start_from_the_same_weights() -> None:
    torch.manual_seed(3)
    plain = [p for p in BUILD(batch_norm=False).parameters()]
    torch.manual_seed(3)
    layers = [m for m in BUILD(batch_norm=True).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    normalized = [p for layer in layers for p in layer.parameters()]
    assert len(plain) == len(normalized) == 10
    assert all(torch.equal(a, b) for a, b in zip(plain, normalized, strict=True))


def test_equals_a_loop_written_out() -> None:
    """Two epochs of SGD with momentum, written without the study's helpers."""
    data = small_data(40)
    settings = Settings(2, 16, 0.05, "sgd")
    result, watcher = run(data, settings, batch_norm=False, seed=5)
    torch.manual_seed(5)
    model = BUILD(batch_norm=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(5)
    for epoch in result.epochs:
        losses = []
        for index in torch.randperm(40, generator=generator).split(16):
            x = (data.train.images[index] / 255.0).to(memory_format=torch.channels_last)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), data.train.labels[index])
            loss.backward()
            optimizer.step()
            losses.append(loss.item() * len(index))
        assert epoch.train_loss == pytest.approx(sum(losses) / 40, rel=1e-4)
    model.eval()
    logits = model(data.test.images / 255.0)
    assert result.test_loss == pytest.approx(F.cross_entropy(logits, data.test.labels).item(), rel=1e-3)
    assert result.test_accuracy == (logits.argmax(1) == data.test.labels).double().mean().item()
    assert watcher.steps == 2 * result.steps_per_epoch == 6


@pytest.mark.parametrize(("examples", "steps"), [(64, 4), (65, 4), (66, 5), (48, 3)])
def test_a_last_batch_of_one_is_left_out(examples: int, steps: int) -> None:
    data, settings = small_data(examples), Settings(1, 16, 1e-3, "adam")
    assert steps_per_epoch(data, settings) == steps
    assert run(data, settings)[1].steps == steps


def test_a_diverging_run_is_recorded_as_such() -> None:
    result, _ = run(small_data(), Settings(2, 16, 1e30, "sgd"), batch_norm=False)
    assert result.epochs[-1].train_loss is None
    assert result.test_loss is None
    assert 0 <= result.test_accuracy <= 1


def test_evaluation_leaves_the_model_as_it_was() -> None:
    data = small_data()
    model = BUILD(batch_norm=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, data.test)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_both_networks_learn_digits(optimizer: str) -> None:
    """Chance is 0.10; with batch normalization two epochs are enough for 0.85."""
    lr = 0.05 if optimizer == "sgd" else 1e-3
    settings = Settings(2, 64, lr, optimizer)
    digits = load("digits")
    assert run(digits, settings, batch_norm=True)[0].test_accuracy > 0.85
    assert run(digits, settings, batch_norm=False)[0].test_accuracy > 0.4
