"""Runs and data made by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from steadynorm.records import CRASHED, FINISHED, Cell, Run, Series, Setting
from steadynorm.study.data import ImageData, Part


def made(
    factors: Mapping[str, Setting],
    seed: int,
    test: float,
    validation: Sequence[float | None] = (0.5,),
    series: Mapping[str, Sequence[float | None]] | None = None,
    status: str = FINISHED,
) -> Run:
    """A run evaluated every 10 steps."""
    cell = Cell("made", dict(factors), seed, {})
    if status == CRASHED:
        return Run(cell, CRASHED, "it crashed")
    loss = [None if y is None else 1 - y for y in validation]
    named = {"validation accuracy": validation, "validation loss": loss, **(series or {})}
    found = {name: Series([10.0 * (i + 1) for i in range(len(ys))], list(ys)) for name, ys in named.items()}
    return Run(cell, status, "", {"test accuracy": test}, found, {"training": 1.0})


def some_data(channels: int = 1, size: int = 28, examples: int = 64) -> ImageData:
    """Noise whose brightness is the class."""
    generator = torch.Generator().manual_seed(0)

    def part(count: int) -> Part:
        labels = torch.randint(10, (count,), generator=generator)
        noise = torch.randint(20, (count, channels, size, size), generator=generator)
        return Part((labels[:, None, None, None] * 24 + noise).to(torch.uint8), labels)

    return ImageData("made", "made", part(examples), part(20), part(20))
