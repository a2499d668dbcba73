"""The training loop: plain PyTorch, data in memory, the same bits for the same seed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..records import Epoch, Run, finite
from .data import ImageData, Part

OPTIMIZERS = {
    "adam": lambda parameters, lr: torch.optim.Adam(parameters, lr),
    "adamw": lambda parameters, lr: torch.optim.AdamW(parameters, lr),
    "sgd": lambda parameters, lr: torch.optim.SGD(parameters, lr, momentum=0.9),
}


@dataclass(frozen=True)
class Settings:
    """How to train: what both networks of a comparison share.

    Attributes:
        epochs: passes over the training data, at least 1.
        batch_size: examples a step, at least 2. A last batch of one example is left out.
        lr: learning rate, positive.
        optimizer: one of `OPTIMIZERS`; sgd has momentum 0.9.
    """

    epochs: int
    batch_size: int
    lr: float
    optimizer: str


def train(
    build: Callable[[], nn.Module],
    variant: str,
    data: ImageData,
    settings: Settings,
    seed: int,
    on_step: Callable[[float, float], None],
) -> Run:
    """Builds and trains one network; `on_step` gets the loss and accuracy of the epoch so far after each step."""
    torch.manual_seed(seed)
    model = build()
    optimizer = OPTIMIZERS[settings.optimizer](model.parameters(), settings.lr)
    shuffle = torch.Generator().manual_seed(seed)
    epochs = []
    for _ in range(settings.epochs):
        start = time.perf_counter()
        train_loss, train_accuracy = _train_epoch(model, optimizer, data.train, settings.batch_size, shuffle, on_step)
        seconds = time.perf_counter() - start
        validation_loss, validation_accuracy = evaluate(model, data.validation)
        epochs.append(Epoch(seconds, finite(train_loss), train_accuracy, finite(validation_loss), validation_accuracy))
    test_loss, test_accuracy = evaluate(model, data.test)
    steps = steps_per_epoch(data, settings)
    return Run(variant, seed, steps, epochs, finite(test_loss), test_accuracy)


def steps_per_epoch(data: ImageData, settings: Settings) -> int:
    """Optimizer steps in one epoch."""
    examples = len(data.train.labels)
    return -(-examples // settings.batch_size) - (examples % settings.batch_size == 1)


def _train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    part: Part,
    batch_size: int,
    shuffle: torch.Generator,
    on_step: Callable[[float, float], None],
) -> tuple[float, float]:
    model.train()
    loss_sum = correct = seen = 0.0
    for x, labels in _batches(part, torch.randperm(len(part.labels), generator=shuffle), batch_size):
        if len(labels) == 1:
            continue
        logits = model(x)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen += len(labels)
        loss_sum += loss.item() * len(labels)
        correct += _correct(logits, labels)
        on_step(loss_sum / seen, correct / seen)
    return loss_sum / seen, correct / seen


@torch.no_grad()
def evaluate(model: nn.Module, part: Part) -> tuple[float, float]:
    """Mean cross-entropy in nats and accuracy in [0, 1] of the model in eval mode."""
    model.eval()
    loss_sum = correct = 0.0
    for x, labels in _batches(part, torch.arange(len(part.labels)), 500):
        logits = model(x)
        loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += _correct(logits, labels)
    return loss_sum / len(part.labels), correct / len(part.labels)


def _batches(part: Part, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images as float32 in [0, 1], channels last, and labels."""
    for index in order.split(batch_size):
        x = part.images[index].float().div_(255).contiguous(memory_format=torch.channels_last)
        yield x, part.labels[index]


def _correct(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).sum())
