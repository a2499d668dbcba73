"""The training loop: plain PyTorch, data in memory, the same bits for the same seed, also when it was interrupted."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..records import DIVERGED, FINISHED, Cell, Series, finite
from .claim import Outcome
from .sources import Source
from .tools import Keeper
from .verdict import VALIDATION


def _fused(
    kind: type[torch.optim.Adam], parameters: Iterable[nn.Parameter], lr: float, **rest: Any
) -> torch.optim.Optimizer:
    """In one call a parameter where torch's is right: a third of the time, up to a fifth of a small network's step.

    It pairs weights and gradients as they lie in memory, which is the same for both only where weights are dense.
    """
    parameters = list(parameters)
    return kind(parameters, lr, fused=all(map(_is_plain, parameters)), **rest)


def _is_plain(weight: Tensor) -> bool:
    dense = weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
    return weight.is_cpu and weight.is_floating_point() and dense


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(_fused, torch.optim.Adam),
    "adamw": partial(_fused, torch.optim.AdamW),
    "sgd": torch.optim.SGD,
    "momentum": lambda parameters, lr, **rest: torch.optim.SGD(parameters, lr, momentum=0.9, **rest),
}

Probe = Callable[[nn.Module, int], Mapping[str, float]]
"""Measures a model during training; gets it and the step, leaves it as it was, gives figures by series."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        lr: learning rate, positive.
        batch_size: examples a step.
        epochs: passes over the training data.
        steps: optimizer steps instead of epochs; 0 for epochs.
        optimizer: one of `OPTIMIZERS`; "momentum" is SGD with momentum 0.9.
        decay: what the learning rate has been multiplied by at the end, exponentially over the steps; 1 for constant.
        weight_decay: as the optimizer's.
        evaluate_every: steps between evaluations; an epoch if None.
    """

    lr: float
    batch_size: int = 64
    epochs: int = 1
    steps: int = 0
    optimizer: str = "adam"
    decay: float = 1.0
    weight_decay: float = 0.0
    evaluate_every: int | None = None

    @classmethod
    def of(cls, cell: Cell, **others: Any) -> Recipe:
        """From the settings and factors of that name; factors win, then `others`."""
        given = {**cell.settings, **cell.factors, **others}
        return cls(**{name: given[name] for name in cls.__dataclass_fields__ if name in given})


def fit(
    model: nn.Module, recipe: Recipe, source: Source, keeper: Keeper | None = None, probe: Probe | None = None
) -> Outcome:
    """Trains a network from its initial weights, or from where it was interrupted.

    Values: "test accuracy" and "test loss" of the last step's weights, "best validation accuracy", each accuracy in
    [0, 1], each loss a mean cross-entropy in nats. Series over steps: "train loss" and "train accuracy", averages since
    the last evaluation, in train mode; "validation loss" and "validation accuracy", in eval mode; and the probe's.
    A loss that is not finite ends the training: the run has diverged. Seconds: "training", the processor's, as if each
    step had taken the median of all but the first; so what happens once, such as loading, does not count.
    """
    keeper = keeper or Keeper()
    model.to(memory_format=source.memory_format)  # type: ignore[call-overload]
    optimizer = OPTIMIZERS[recipe.optimizer](model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    steps = recipe.steps or recipe.epochs * source.steps_in_epoch
    progress = _Progress()
    if (state := keeper.restore()) is not None:
        progress = _restored(state, model, optimizer)
    every = recipe.evaluate_every or source.steps_in_epoch
    if progress.step == 0 and probe is not None:
        progress.add(0, probe(model, 0))
    while progress.step < steps and progress.finite:
        begin = time.process_time()
        rate = recipe.lr * recipe.decay ** (progress.step / steps)
        _train_step(model, optimizer, rate, source.batch(progress.step), progress)
        progress.seconds.append(time.process_time() - begin)
        if progress.step % every == 0 or progress.step == steps or not progress.finite:
            _look(model, source, probe, progress)
        keeper.offer(progress.step, steps, lambda: _state(model, optimizer, progress))
    return _outcome(model, source, progress)


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Any, Tensor]]) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy in [0, 1] of the model in eval mode, in which it is left."""
    model.eval()
    loss = correct = seen = 0.0
    for x, labels in batches:
        logits = model(x)
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += float((logits.argmax(1) == labels).sum())
        seen += len(labels)
    return loss / max(seen, 1), correct / max(seen, 1)


class _Progress:
    """Everything of a training that is not in the model or its optimizer."""

    def __init__(self) -> None:
        self.step = 0
        self.seconds: list[float] = []
        self.finite = True
        self.loss = self.correct = self.seen = 0.0
        self.series: dict[str, list[tuple[float, float]]] = {}

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self.series.setdefault(name, []).append((step, value))


def _train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    lr: float,
    batch: tuple[Any, Tensor],
    progress: _Progress,
) -> None:
    x, labels = batch
    for group in optimizer.param_groups:
        group["lr"] = lr
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


def _look(model: nn.Module, source: Source, probe: Probe | None, progress: _Progress) -> None:
    loss, accuracy = evaluate(model, source.part("validation"))
    seen = max(progress.seen, 1)
    figures = {"train loss": progress.loss / seen, "train accuracy": progress.correct / seen}
    progress.add(progress.step, {**figures, "validation loss": loss, VALIDATION: accuracy})
    if probe is not None:
        progress.add(progress.step, probe(model, progress.step))
    progress.loss = progress.correct = progress.seen = 0.0


def _outcome(model: nn.Module, source: Source, progress: _Progress) -> Outcome:
    loss, accuracy = evaluate(model, source.part("test"))
    series = {
        name: Series([x for x, _ in points], [finite(y) for _, y in points]) for name, points in progress.series.items()
    }
    best = max((y for y in series[VALIDATION].y if y is not None), default=None)
    values = {"test accuracy": accuracy, "test loss": finite(loss), "best validation accuracy": best}
    status, message = FINISHED, ""
    if not progress.finite:
        status, message = DIVERGED, f"the loss was not finite at step {progress.step}"
    training = progress.step * statistics.median(progress.seconds[1:] or progress.seconds)
    return Outcome(values, series, {"training": training}, status, message)


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
