"""Records, data and a watcher made by hand, small enough to check by eye."""

from __future__ import annotations

import torch

from steadynorm.records import Epoch, Records, Run, Spec
from steadynorm.study.data import ImageData, Part

VARIANTS = ["without BN", "with BN"]


def a_run(
    variant: str, seed: int, accuracies: list[float], losses: list[float | None], test_accuracy: float = 0.9
) -> Run:
    """A run of 20 steps an epoch whose training figures are a little better than its validation figures."""
    epochs = [
        Epoch(1.5, None if loss is None else loss * 0.9, accuracy, loss, accuracy)
        for accuracy, loss in zip(accuracies, losses, strict=True)
    ]
    return Run(variant, seed, 20, epochs, 0.3, test_accuracy)


def some_records(runs: list[Run], **changes: object) -> Records:
    spec = {
        "study": "cnn",
        "data": "digits",
        "data_title": "digits",
        "data_sha256": "0" * 64,
        "examples": {"train": 10, "validation": 2, "test": 3},
        "variants": VARIANTS,
        "seeds": [0, 1],
        "epochs": 4,
        "batch_size": 64,
        "lr": 1e-3,
        "optimizer": "adam",
    }
    return Records(Spec(**{**spec, **changes}), "steadynorm study --data digits", {"torch": "2.13.0"}, runs)  # type: ignore[arg-type]


def full_records() -> Records:
    """Two seeds of both variants; with BN the other's best is reached after 2 and 1 of 4 epochs."""
    return some_records(
        [
            a_run("without BN", 0, [0.5, 0.6, 0.7, 0.8], [1.0, 0.8, 0.7, 0.5], 0.80),
            a_run("with BN", 0, [0.7, 0.9, 0.9, 0.95], [0.9, 0.5, 0.4, 0.3], 0.92),
            a_run("without BN", 1, [0.4, 0.5, 0.7, 0.6], [1.1, 0.9, 0.7, 0.8], 0.70),
            a_run("with BN", 1, [0.8, 0.9, 0.85, 0.9], [0.8, 0.5, 0.5, 0.4], 0.94),
        ]
    )


def small_data(examples: int = 65) -> ImageData:
    """Images of 28x28 whose class is how bright they are."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Part:
        labels = torch.randint(10, (count,), generator=generator)
        noise = torch.randint(20, (count, 1, 28, 28), generator=generator)
        return Part((labels[:, None, None, None] * 24 + noise).to(torch.uint8), labels)

    return ImageData("small", "small", part(examples), part(20), part(20))


class Silent:
    """A watcher that remembers what it was told, and can stop the study at a run's first step."""

    def __init__(self, interrupt_at: int | None = None) -> None:
        self.begun: list[tuple[str, int]] = []
        self.ended: list[Run] = []
        self.steps = 0
        self._interrupt_at = interrupt_at

    def begin(self, variant: str, seed: int, steps: int) -> None:
        self.begun.append((variant, seed))
        self.expected_steps = steps

    def step(self, loss: float, accuracy: float) -> None:
        self.steps += 1
        if len(self.begun) - 1 == self._interrupt_at:
            raise KeyboardInterrupt

    def end(self, run: Run) -> None:
        self.ended.append(run)
