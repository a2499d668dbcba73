"""The training loop: plain PyTorch, data in memory, the same bits for the same seed, also when it was interrupted."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..records import DIVERGED, FINISHED, Cell, Series, finite
from .claim import Outcome
from .data import ImageData, Part
from .tools import Keeper

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "momentum": lambda parameters, lr, **rest: torch.optim.SGD(parameters, lr, momentum=0.9, **rest),
}

Probe = Callable[[nn.Module, int], Mapping[str, float]]
"""Measures a model during training; gets it and the step, leaves it as it was, gives figures by series."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        steps: optimizer steps, at least 1.
        batch_size: examples a step; the last, smaller batch of an epoch is left out.
        lr: learning rate, positive.
        optimizer: one of `OPTIMIZERS`; "momentum" is SGD with momentum 0.9.
        decay: what the learning rate has been multiplied by at the end, exponentially over the steps; 1 for constant.
        weight_decay: as the optimizer's.
        evaluate_every: steps between evaluations; an epoch if None.
    """

    steps: int
    batch_size: int
    lr: float
    optimizer: str = "adam"
    decay: float = 1.0
    weight_decay: float = 0.0
    evaluate_every: int | None = None

    @classmethod
    def of(cls, cell: Cell, **others: Any) -> Recipe:
        """From the settings and factors of that name; factors win, then `others`."""
        given = {**cell.settings, **cell.factors, **others}
        return cls(**{name: given[name] for name in cls.__dataclass_fields__ if name in given})


def epochs(cell: Cell, data: ImageData) -> int:
    """The steps of the cell's setting "epochs"."""
    a_epoch = max(1, len(data.train.labels) // int(str(cell.settings["batch_size"])))
    return int(str(cell.settings["epochs"])) * a_epoch


def pictures(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) as float32 in [0, 1], channels last."""
    return images.float().div_(255).contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Ways:
    """What a network is fed and how it is looked at.

    Attributes:
        prepare: from uint8 images to the network's input.
        augment: changes a training input at random; draws from the generator alone.
        probe: figures taken at each evaluation, and before the first step.
    """

    prepare: Callable[[Tensor], Tensor] = pictures
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    probe: Probe | None = None


def fit(
    model: nn.Module, recipe: Recipe, data: ImageData, seed: int, keeper: Keeper | None = None, ways: Ways | None = None
) -> Outcome:
    """Trains a network from its initial weights, or from where it was interrupted.

    Values: "test accuracy" and "test loss" of the last step's weights, "best validation accuracy", each accuracy in
    [0, 1], each loss a mean cross-entropy in nats. Series over steps: "train loss" and "train accuracy", averages since
    the last evaluation, in train mode; "validation loss" and "validation accuracy", in eval mode; and the probe's.
    A loss that is not finite ends the training: the run has diverged.
    """
    ways, keeper = ways or Ways(), keeper or Keeper()
    make = OPTIMIZERS[recipe.optimizer]
    optimizer = make(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    progress = _Progress()
    if (state := keeper.restore()) is not None:
        progress = _restored(state, model, optimizer)
    every = recipe.evaluate_every or max(1, len(data.train.labels) // recipe.batch_size)
    if progress.step == 0 and ways.probe is not None:
        progress.add(0, ways.probe(model, 0))
    while progress.step < recipe.steps and progress.finite:
        begin = time.perf_counter()
        _train_step(model, optimizer, recipe, data.train, seed, ways, progress)
        progress.seconds += time.perf_counter() - begin
        if progress.step % every == 0 or progress.step == recipe.steps or not progress.finite:
            _evaluate(model, data.validation, ways, progress)
        keeper.offer(progress.step, recipe.steps, lambda: _state(model, optimizer, progress))
    return _outcome(model, data, ways, progress)


@torch.no_grad()
def evaluate(model: nn.Module, part: Part, prepare: Callable[[Tensor], Tensor] = pictures) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy in [0, 1] of the model in eval mode, in which it is left."""
    model.eval()
    loss_sum = correct = 0.0
    for images, labels in zip(part.images.split(500), part.labels.split(500), strict=True):
        logits = model(prepare(images))
        loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += float((logits.argmax(1) == labels).sum())
    return loss_sum / len(part.labels), correct / len(part.labels)


class _Progress:
    """Everything of a training that is not in the model or its optimizer."""

    def __init__(self) -> None:
        self.step = 0
        self.seconds = 0.0
        self.finite = True
        self.loss = self.correct = self.seen = 0.0
        self.series: dict[str, list[tuple[float, float]]] = {}

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.series.setdefault(name, []).append((step, value))


def _train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    part: Part,
    seed: int,
    ways: Ways,
    progress: _Progress,
) -> None:
    index = batch_index(len(part.labels), recipe.batch_size, seed, progress.step)
    x, labels = ways.prepare(part.images[index]), part.labels[index]
    if ways.augment is not None:
        x = ways.augment(x, torch.Generator().manual_seed(_mixed(seed, progress.step)))
    for group in optimizer.param_groups:
        group["lr"] = recipe.lr * recipe.decay ** (progress.step / recipe.steps)
    model.train()
    logits = model(x)
    loss = F.cross_entropy(logits, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    progress.step += 1
    progress.seen += len(labels)
    progress.loss += loss.item() * len(labels)
    progress.correct += float((logits.argmax(1) == labels).sum())
    progress.finite = bool(torch.isfinite(loss))


def batch_index(examples: int, batch_size: int, seed: int, step: int) -> Tensor:
    """The examples of a step: every epoch has an order of its own, a function of seed and epoch alone.

    Args:
        examples: how many there are; fewer than a batch makes a batch of all.
        batch_size: at least 1.
        seed: of the run.
        step: from 0.
    """
    a_epoch = max(1, examples // batch_size)
    epoch, place = divmod(step, a_epoch)
    return _order(examples, seed, epoch)[place * batch_size : (place + 1) * batch_size]


@lru_cache(maxsize=4)
def _order(examples: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(examples, generator=torch.Generator().manual_seed(_mixed(seed, epoch)))


def _mixed(seed: int, number: int) -> int:
    """One seed from two numbers, different for different pairs."""
    return seed * 1_000_000_007 + number


def _evaluate(model: nn.Module, validation: Part, ways: Ways, progress: _Progress) -> None:
    loss, accuracy = evaluate(model, validation, ways.prepare)
    seen = max(progress.seen, 1)
    figures = {"train loss": progress.loss / seen, "train accuracy": progress.correct / seen}
    progress.add(progress.step, {**figures, "validation loss": loss, "validation accuracy": accuracy})
    if ways.probe is not None:
        progress.add(progress.step, ways.probe(model, progress.step))
    progress.loss = progress.correct = progress.seen = 0.0


def _outcome(model: nn.Module, data: ImageData, ways: Ways, progress: _Progress) -> Outcome:
    loss, accuracy = evaluate(model, data.test, ways.prepare)
    series = {
        name: Series([x for x, _ in points], [finite(y) for _, y in points]) for name, points in progress.series.items()
    }
    best = max((y for y in series["validation accuracy"].y if y is not None), default=None)
    values = {"test accuracy": accuracy, "test loss": finite(loss), "best validation accuracy": best}
    status, message = FINISHED, ""
    if not progress.finite:
        status, message = DIVERGED, f"the loss was not finite at step {progress.step}"
    return Outcome(values, series, {"training": progress.seconds}, status, message)


def _state(model: nn.Module, optimizer: torch.optim.Optimizer, progress: _Progress) -> dict[str, Any]:
    kept = {**vars(progress), "series": {name: list(map(list, points)) for name, points in progress.series.items()}}
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "progress": kept,
    }


def _restored(state: dict[str, Any], model: nn.Module, optimizer: torch.optim.Optimizer) -> _Progress:
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["random"])
    progress = _Progress()
    vars(progress).update(state["progress"])
    progress.series = {name: [(x, y) for x, y in points] for name, points in progress.series.items()}
    return progress
