"""Where training takes its batches from: images in memory, or a user's loaders; the same ones for the same seed."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..errors import InvalidArgumentError
from ..records import Data
from .data import ImageData

Batch = tuple[Any, Tensor]


class Source(Protocol):
    """Batches of one run. Equal seeds give equal batches, whatever step is asked for first.

    Attributes:
        memory_format: of the weights of a network that these batches train.
        steps_in_epoch: how many batches.
    """

    memory_format: torch.memory_format
    steps_in_epoch: int

    def batch(self, step: int) -> Batch:
        """Input and labels of a training step, from 0."""
        ...

    def part(self, name: str) -> Iterable[Batch]:
        """All of "validation" or "test", in order."""
        ...


def pictures(images: Tensor) -> Tensor:
    """uint8 (N, C, H, W) as float32 in [0, 1], channels last."""
    return images.float().div_(255).contiguous(memory_format=torch.channels_last)


def standardized(data: ImageData) -> Callable[[Tensor], Tensor]:
    """Prepares images so that the pixels of all training images have mean 0 and standard deviation 1, channels last."""
    counts = torch.bincount(data.train.images.flatten(), minlength=256).double()
    shades = torch.arange(256, dtype=torch.float64) / 255
    mean = float((counts * shades).sum() / counts.sum())
    std = float((counts * (shades - mean) ** 2).sum() / counts.sum()) ** 0.5
    return lambda images: pictures(images).sub_(mean).div_(std)


class Images:
    """Batches of images in memory. Every epoch has an order of its own; its last, smaller batch is left out.

    Networks are trained channels last, which takes 2-d convolutions two thirds of the time.

    Args:
        data: the images.
        batch_size: at least 1; more than there are makes batches of all.
        seed: of the run.
        prepare: from uint8 images to the network's input.
        augment: changes a training input at random; draws from the generator alone.
    """

    memory_format = torch.channels_last

    def __init__(
        self,
        data: ImageData,
        batch_size: int,
        seed: int,
        *,
        prepare: Callable[[Tensor], Tensor] = pictures,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    ) -> None:
        self._data, self._seed, self._prepare, self._augment = data, seed, prepare, augment
        self._batch_size = batch_size
        self.steps_in_epoch = max(1, len(data.train.labels) // batch_size)

    def batch(self, step: int) -> Batch:
        epoch, place = divmod(step, self.steps_in_epoch)
        order = _order(len(self._data.train.labels), self._seed, epoch)
        index = order[place * self._batch_size : (place + 1) * self._batch_size]
        x = self._prepare(self._data.train.images[index])
        if self._augment is not None:
            x = self._augment(x, torch.Generator().manual_seed(mixed(self._seed, step)))
        return x, self._data.train.labels[index]

    def part(self, name: str) -> Iterator[Batch]:
        part = getattr(self._data, name)
        for images, labels in zip(part.images.split(500), part.labels.split(500), strict=True):
            yield self._prepare(images), labels


@lru_cache(maxsize=4)
def _order(examples: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(examples, generator=torch.Generator().manual_seed(mixed(seed, epoch)))


def mixed(seed: int, number: int) -> int:
    """One seed from two numbers, different for different pairs."""
    return seed * 1_000_000_007 + number


class Loaders:
    """A user's loaders of (input, labels).

    Shuffling and random transforms draw from torch's, NumPy's and Python's global generators, or from a loader's or
    sampler's own, which are seeded for each epoch; the global ones are set aside while the network draws from them. So
    batches depend on seed and step alone.

    Args:
        make: gives the loaders for training, validation and, if there is a third, testing; else validation serves for
            both. Called with the global generators seeded, so what it draws is the same for every variant of a seed.
        seed: of the run.
    """

    memory_format = torch.preserve_format  # a user's network may view what it computes in the order it was built for

    def __init__(self, make: Callable[[], Iterable[Iterable[Batch]]], seed: int) -> None:
        self._random: Any = None
        with self._own_random():
            _seed_all(seed)
            given = list(make())
        if len(given) not in (2, 3):
            raise InvalidArgumentError(
                f"compare: expected loaders for training, validation and perhaps testing, got {len(given)} of them."
            )
        if not isinstance(given[0], Sized) or len(given[0]) == 0:
            raise InvalidArgumentError(
                "compare: expected a training loader with a length above 0, as a torch.utils.data.DataLoader of a data "
                f"set has, got {type(given[0]).__name__}."
            )
        self._loaders = {"train": given[0], "validation": given[1], "test": given[-1]}
        self._sizes = {name: _size(part) for name, part in zip(("train", "validation", "test"), given, strict=False)}
        self._seed, self._epoch, self._place = seed, -1, 0
        self._iterator: Iterator[Batch] = iter(())
        self.steps_in_epoch = len(given[0])

    def batch(self, step: int) -> Batch:
        epoch, place = divmod(step, self.steps_in_epoch)
        with self._own_random():
            if (epoch, place) != (self._epoch, self._place):
                _seed_all(mixed(self._seed, epoch))
                train = self._loaders["train"]
                for drawer in (train, getattr(train, "sampler", None)):
                    if isinstance(generator := getattr(drawer, "generator", None), torch.Generator):
                        generator.manual_seed(mixed(self._seed, epoch))
                self._iterator = iter(train)
                for _ in range(place):
                    next(self._iterator)
            self._epoch, self._place = epoch, place + 1
            return next(self._iterator)

    def part(self, name: str) -> Iterable[Batch]:
        return self._loaders[name]

    def describe(self) -> Data:
        """How large each part is, and a fingerprint: of the first batch's shapes, and of held-out labels."""
        with self._own_random():
            first, held = (next(iter(self._loaders[name])) for name in ("train", "validation"))
        shapes = [(tuple(x.shape), str(x.dtype)) for x in tree_leaves(first) if isinstance(x, Tensor)]
        labels = torch.as_tensor(held[1]).cpu().numpy().tobytes()
        digest = hashlib.sha256(f"{self._sizes} {shapes}".encode() + labels)
        return Data("the user's own", digest.hexdigest(), self._sizes)

    @contextmanager
    def _own_random(self) -> Iterator[None]:
        """Inside, the global generators are the loaders'; outside, the network's."""
        before = _random_state()
        if self._random is not None:
            _set_random_state(self._random)
        try:
            yield
        finally:
            self._random = _random_state()
            _set_random_state(before)


def _size(loader: Any) -> int:
    """Examples, or batches where they are not known, or 0."""
    found = getattr(loader, "dataset", None)
    known = found if isinstance(found, Sized) else loader
    return len(known) if isinstance(known, Sized) else 0


def _seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (a user's transforms use it)
    random.seed(seed)


def _random_state() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def _set_random_state(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    random.setstate(state[2])
