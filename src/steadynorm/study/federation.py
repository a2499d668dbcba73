"""Federated averaging: clients that hold different classes, whose networks become one after each round."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import steadynorm as sn

from ..records import DIVERGED, FINISHED, Series, finite
from .claim import Outcome
from .data import ImageData
from .sources import Images, mixed, pictures
from .tools import Keeper
from .training import evaluate
from .verdict import VALIDATION

State = Mapping[str, Tensor]
Merge = Callable[[list[State], list[float]], Mapping[str, Tensor]]


def skewed(labels: Tensor, clients: int, classes: int, seed: int) -> list[Tensor]:
    """Indices of each client's examples: all of them shared out, `classes` classes or about as many to each.

    As McMahan et al. 2017, sec. 3: examples are sorted by class and cut into shards, of which each client gets some.
    """
    generator = torch.Generator().manual_seed(mixed(seed, 3))
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    shards = by_class.tensor_split(clients * classes)
    order = torch.randperm(len(shards), generator=generator).tolist()
    return [torch.cat([shards[i] for i in order[client::clients]]) for client in range(clients)]


def plain_mean(states: list[State], weights: list[float]) -> dict[str, Tensor]:
    """Every entry's weighted mean, variances too: what averaging that knows nothing of statistics does."""
    total = sum(weights)
    return {
        name: first
        if not first.is_floating_point()
        else sum(weight / total * state[name] for weight, state in zip(weights, states, strict=True))
        for name, first in states[0].items()
    }  # type: ignore[return-value]


MERGES: dict[str, Merge] = {
    "plain mean": plain_mean,
    "combine": lambda states, weights: sn.combine(states, weights=weights),
}


def federate(
    model: nn.Module,
    data: ImageData,
    parts: list[Tensor],
    merge: Merge,
    keeper: Keeper,
    *,
    rounds: int,
    local_epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
) -> Outcome:
    """In each round every client trains from the common network by SGD on its own examples; then they are merged.

    Values and series are those of `training.fit` that are measured in eval mode, over rounds.
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    test, validation = (
        [(pictures(x), y) for x, y in zip(part.images.split(500), part.labels.split(500), strict=True)]
        for part in (data.test, data.validation)
    )
    state = keeper.restore() or {"round": 0, "model": model.state_dict(), "points": [], "seconds": 0.0}
    model.load_state_dict(state["model"])
    points, seconds, finished = [list(point) for point in state["points"]], state["seconds"], state["round"]
    sound = True
    while finished < rounds and sound:
        begin = time.process_time()
        states, common = [], {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for client, part in enumerate(parts):
            model.load_state_dict(common)
            own = ImageData(data.name, data.title, data.train.take(part), data.validation, data.test, data.classes)
            source = Images(own, min(batch_size, len(part)), 100_000 * (seed + 1) + finished * len(parts) + client)
            _train(model, source, local_epochs, lr)
            states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        model.load_state_dict(merge(states, [float(len(part)) for part in parts]))
        seconds += time.process_time() - begin
        finished += 1
        sound = all(bool(parameter.isfinite().all()) for parameter in model.parameters())
        points.append([finished, *evaluate(model, validation)])
        kept: dict[str, Any] = {"round": finished, "points": points, "seconds": seconds}
        keeper.offer(finished, rounds, lambda kept=kept: {**kept, "model": model.state_dict()})
    loss, accuracy = evaluate(model, test)
    series = {
        name: Series([float(point[0]) for point in points], [finite(point[column]) for point in points])
        for column, name in ((1, "validation loss"), (2, VALIDATION))
    }
    best = max((y for y in series[VALIDATION].y if y is not None), default=None)
    values = {"test accuracy": accuracy, "test loss": finite(loss), "best validation accuracy": best}
    message = "" if sound else f"a weight was not finite after round {finished}"
    return Outcome(values, series, {"training": seconds}, FINISHED if sound else DIVERGED, message)


def _train(model: nn.Module, source: Images, epochs: int, lr: float) -> None:
    model.train()
    for step in range(epochs * source.steps_in_epoch):
        x, labels = source.batch(step)
        loss = F.cross_entropy(model(x), labels)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= lr * parameter.grad
