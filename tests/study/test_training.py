"""The training loop does what a hand-written one does, the same way every time, interrupted or not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from steadynorm.errors import InvalidArgumentError
from steadynorm.records import DIVERGED, FINISHED
from steadynorm.study.claim import Outcome
from steadynorm.study.data import ImageData, load
from steadynorm.study.models import cnn
from steadynorm.study.sources import Images, Loaders, Source
from steadynorm.study.tools import Keeper
from steadynorm.study.training import OPTIMIZERS, Recipe, evaluate, fit

from ..support.images import small_data

BUILD = partial(cnn, 1, 28, 10)
SLOW = pytest.mark.slow


def trained(
    recipe: Recipe, data: ImageData | None = None, batch_norm: bool = True, seed: int = 0, **more: Any
) -> Outcome:
    torch.manual_seed(seed)
    return fit(BUILD(batch_norm=batch_norm), recipe, Images(data or small_data(), recipe.batch_size, seed), **more)


def test_same_seed_same_bits() -> None:
    recipe = Recipe(1e-3, 16, 2)
    first, second, other = (trained(recipe, seed=seed) for seed in (0, 0, 1))
    assert (first.values, first.series) == (second.values, second.series)
    assert first.series != other.series


def test_both_networks_start_from_the_same_weights() -> None:
    torch.manual_seed(3)
    plain = list(BUILD(batch_norm=False).parameters())
    torch.manual_seed(3)
    layers = [m for m in BUILD(batch_norm=True).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    normalized = [p for layer in layers for p in layer.parameters()]
    assert len(plain) == len(normalized) == 10
    assert all(torch.equal(a, b) for a, b in zip(plain, normalized, strict=True))


def test_equals_a_loop_written_out() -> None:
    """Two epochs of SGD with momentum and a decaying rate, written without the study's helpers."""
    data = small_data(40)
    outcome = trained(Recipe(0.05, 16, 2, optimizer="momentum", decay=0.5, weight_decay=1e-3), data, False, 5)
    torch.manual_seed(5)
    model, seen, losses = BUILD(batch_norm=False), [], []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    source = Images(data, 16, 5)
    assert source.steps_in_epoch == 2
    for step in range(4):
        x, labels = source.batch(step)
        seen.append(x.flatten(1))
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * 0.5 ** (step / 4)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert outcome.series["train loss"].x == [2, 4]
    assert outcome.series["train loss"].y == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2], rel=1e-4)
    model.eval()
    logits = model(data.test.images / 255.0)
    assert outcome.values["test loss"] == pytest.approx(F.cross_entropy(logits, data.test.labels).item(), rel=1e-3)
    assert outcome.values["test accuracy"] == (logits.argmax(1) == data.test.labels).double().mean().item()
    everything = (data.train.images / 255.0).flatten(1)
    rows = [(everything - row).abs().amax(1).argmin().item() for row in torch.cat(seen[:2])]
    assert len(set(rows)) == 32  # no example twice in an epoch


class Stopped(Exception):
    pass


class Stopping(Keeper):
    """Keeps its state at a step, and stops there."""

    def __init__(self, path: Path, at: int) -> None:
        super().__init__(path, 0)
        self.at = at

    def offer(self, done: int, total: int, state: Any) -> None:
        super().offer(done, total, state)
        if done == self.at:
            raise Stopped


def dropped(batch_norm: bool = True) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.BatchNorm1d(16), nn.Dropout(), nn.Linear(16, 10))


def tensors(part: Any) -> TensorDataset:
    return TensorDataset(part.images / 255.0, part.labels)


def images(data: ImageData) -> Source:
    def noisy(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + torch.randn(x.shape, generator=generator)

    return Images(data, 16, 3, augment=noisy)


def loaders(data: ImageData) -> Source:
    train = DataLoader(tensors(data.train), 16, shuffle=True, drop_last=True)
    return Loaders(lambda: [train, DataLoader(tensors(data.validation), 8), DataLoader(tensors(data.test), 8)], 3)


def own_generators(data: ImageData) -> Source:
    """Loaders that draw from generators of their own, which others have drawn from before."""
    generator = torch.Generator()
    generator.seed()
    train = DataLoader(tensors(data.train), 16, shuffle=True, drop_last=True, generator=generator)
    return Loaders(lambda: [train, DataLoader(tensors(data.validation), 8), DataLoader(tensors(data.test), 8)], 3)


@pytest.mark.parametrize("source", [images, loaders, own_generators])
@pytest.mark.parametrize("at", [1, 4, 6, 11])
def test_an_interrupted_training_goes_on_to_the_same_bits(source: Any, at: int, tmp_path: Path) -> None:
    """With dropout, Adam's moments, a probe, random augmentation; in mid-epoch, at its end, at the very end."""
    recipe, data = Recipe(1e-2, 16, 3, decay=0.1, evaluate_every=3), small_data(66)

    def probe(model: nn.Module, step: int) -> Mapping[str, float]:
        return {"norm": float(sum(p.detach().square().sum() for p in model.parameters()))}

    torch.manual_seed(3)
    whole = fit(dropped(), recipe, source(data), None, probe)
    torch.manual_seed(3)
    with pytest.raises(Stopped):
        fit(dropped(), recipe, source(data), Stopping(tmp_path / "c.pt", at), probe)
    torch.manual_seed(99)
    resumed = fit(dropped(), recipe, source(data), Keeper(tmp_path / "c.pt"), probe)
    assert (resumed.values, resumed.series) == (whole.values, whole.series)
    assert whole.series["norm"].x == [0, 3, 6, 9, 12]


def test_images_are_learned_channels_last_and_loaders_as_they_come() -> None:
    """A user's network may view what its convolutions give, which only the order that it was built for allows."""

    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(1, 4, 3), nn.Linear(4 * 26 * 26, 10)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.out(y.view(len(y), -1))

    data, ours = small_data(66), BUILD(batch_norm=True)
    fit(ours, Recipe(1e-3, 16, 1), images(data))
    convolutions = [m for m in ours.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)
    assert all(p.grad.stride() == p.stride() for p in ours.parameters() if p.grad is not None)
    assert fit(Viewing(), Recipe(1e-3, 16, 1), loaders(data)).status == FINISHED
    with pytest.raises(RuntimeError, match="view size is not compatible"):
        fit(Viewing(), Recipe(1e-3, 16, 1), images(data))


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("kind", ["contiguous", "channels last", "with gaps"])
def test_adam_in_one_call_is_adam(name: str, kind: str) -> None:
    """Three steps are those of torch's loop, in float64, to which weights with gaps in memory are left."""

    def trained(make: Callable[..., torch.optim.Optimizer]) -> tuple[Tensor, torch.optim.Optimizer]:
        values = torch.randn(6, 5, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        orders = {"channels last": values.to(memory_format=torch.channels_last), "with gaps": values[..., 1:]}
        weight = nn.Parameter(orders.get(kind, values))
        optimizer = make([weight], lr=0.1, weight_decay=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (
                weight * torch.linspace(1, 2, weight.numel(), dtype=torch.float64).view(weight.shape)
            ).sin().sum().backward()
            optimizer.step()
        return weight.detach(), optimizer

    found, ours = trained(OPTIMIZERS[name])
    expected, _ = trained({"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert ours.defaults["fused"] == (kind != "with gaps")


def test_what_happens_once_is_not_in_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first step of 100 s and, of the other seven, one of 50 s: eight at the median's 2 s."""
    clock = iter([0, 100, 0, 2, 0, 2, 0, 2, 0, 50, 0, 2, 0, 2, 0, 2])
    monkeypatch.setattr("steadynorm.study.training.time.process_time", lambda: next(clock))
    assert trained(Recipe(1e-3, 16, steps=8)).seconds == {"training": 16}


def test_loaders_and_the_network_draw_apart() -> None:
    """What the network draws in between does not change the batches, nor do the batches what it draws."""
    data = small_data(66)
    first, second = loaders(data), loaders(data)
    alone = [first.batch(step)[1] for step in range(8)]
    torch.manual_seed(0)
    drawn = []
    for step in range(8):
        drawn.append(torch.rand(3))
        assert torch.equal(second.batch(step)[1], alone[step])
    torch.manual_seed(0)
    assert torch.equal(torch.stack(drawn), torch.rand(8, 3))
    assert not torch.equal(torch.cat(alone[:4]), torch.cat(alone[4:]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([[1]], "expected loaders for training, validation and perhaps testing, got 1 of them"),
        ([iter([1]), [1]], "expected a training loader with a length above 0, .* got list_iterator"),
        ([[], [1]], "with a length above 0"),
    ],
)
def test_loaders_that_are_none(given: Any, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Loaders(lambda: given, 0)


def test_loaders_are_made_from_the_seed_whatever_was_drawn_before() -> None:
    data = small_data(66)

    def made() -> list[DataLoader[Any]]:
        index = np.random.permutation(66).tolist()  # noqa: NPY002 (as users do)
        kept, rest = torch.utils.data.random_split(tensors(data.train), [50, 16])
        return [DataLoader(kept, 16), DataLoader(torch.utils.data.Subset(rest, [i % 16 for i in index[:8]]), 8)]

    def labels(seed: int) -> list[Tensor]:
        return [Loaders(made, seed).batch(0)[1], *(y for _, y in Loaders(made, seed).part("validation"))]

    first = labels(1)
    np.random.rand(5), torch.rand(5)  # noqa: NPY002
    assert all(map(torch.equal, first, labels(1)))
    assert not torch.equal(first[0], labels(2)[0])


def test_a_diverging_run_stops_and_says_so() -> None:
    outcome = trained(Recipe(1e30, 16, 4, optimizer="momentum"), batch_norm=False)
    assert outcome.status == DIVERGED
    step = int(outcome.message.removeprefix("the loss was not finite at step "))
    assert 1 < step < 16
    assert outcome.series["train loss"].x[-1] == step
    assert outcome.series["train loss"].y[-1] is None
    assert outcome.values["test loss"] is None
    assert 0 <= float(outcome.values["test accuracy"] or 0) <= 1


def test_evaluation_leaves_the_model_as_it_was() -> None:
    source, model = Images(small_data(), 16, 0), BUILD(batch_norm=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, source.part("test"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("optimizer", "lr"),
    [("adam", 1e-3), pytest.param("adamw", 1e-3, marks=SLOW), ("momentum", 0.02), pytest.param("sgd", 0.2, marks=SLOW)],
)
def test_learns_digits(optimizer: str, lr: float) -> None:
    """Chance is 0.10; three epochs give more than 0.95, the least of eight seeds: 0.7 is far from luck's reach."""
    outcome = trained(Recipe(lr, 64, 3, optimizer=optimizer), load("digits"))
    assert outcome.status == FINISHED
    assert float(outcome.values["test accuracy"] or 0) > 0.7


def test_learns_digits_without_batch_normalization() -> None:
    """Adam in three epochs: 0.80, the least of eight seeds. Other optimizers take longer, and how long is luck."""
    assert float(trained(Recipe(1e-3, 64, 3), load("digits"), False).values["test accuracy"] or 0) > 0.5
