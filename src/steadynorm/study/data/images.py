"""Images and labels in memory, split the same way every time."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """Images, uint8 (N, C, H, W), and labels, int64 (N,)."""

    images: Tensor
    labels: Tensor

    def take(self, index: Tensor) -> Part:
        return Part(self.images[index], self.labels[index])

    def spaced(self, count: int) -> Part:
        """At most `count` of the examples, as far apart as can be: files often come sorted by class."""
        every = len(self.labels)
        return self if count >= every else self.take(torch.arange(count) * every // count)


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

    def at_most(self, images: int) -> ImageData:
        """Every so-manieth image: at most `images` for training and testing each, a third as many for validation."""
        return replace(
            self,
            train=self.train.spaced(images),
            validation=self.validation.spaced(images // 3),
            test=self.test.spaced(images),
        )


def hold_out(every: Part, share: int) -> tuple[Part, Part]:
    """All but one `share`-th of the examples, and that part; drawn at random, the same every time."""
    order = torch.randperm(len(every.labels), generator=torch.Generator().manual_seed(0))
    held = len(order) // share
    return every.take(order[held:]), every.take(order[:held])
