"""Images and labels in memory, split the same way every time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Images, uint8 (N, C, H, W), and labels, int64 (N,)."""

    images: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> Part:
        return Part(self.images[index], self.labels[index])


@dataclass(frozen=True)
class ImageData:
    """A data set of 10 classes in three parts; `name` is how a command names it, `title` how a report does."""

    name: str
    title: str
    train: Part
    validation: Part
    test: Part
    classes: int = 10

    @property
    def sha256(self) -> str:
        """Of every image and label, in order: equal for equal data and splits."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            digest.update(part.images.numpy().tobytes())
            digest.update(part.labels.numpy().tobytes())
        return digest.hexdigest()

    @property
    def examples(self) -> dict[str, int]:
        """How many examples each part has."""
        return {name: len(getattr(self, name).labels) for name in ("train", "validation", "test")}


def hold_out(every: Part, share: int) -> tuple[Part, Part]:
    """All but one `share`-th of the examples, and that part; drawn at random, the same every time."""
    order = torch.randperm(len(every.labels), generator=torch.Generator().manual_seed(0))
    held = len(order) // share
    return every.take(order[held:]), every.take(order[:held])
