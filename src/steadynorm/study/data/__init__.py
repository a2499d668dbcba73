"""The data sets of the studies, by name."""

from __future__ import annotations

from pathlib import Path

from ...errors import DataError
from . import cifar, digits, idx
from .images import ImageData, Part, hold_out

__all__ = ["NAMES", "ImageData", "Part", "load"]

SMALLEST = 18
"""Height and width below which nothing is left after the studies' convolutions and poolings."""

NAMES = ("digits", *idx.SOURCES, "cifar10")


def load(name: str, directory: Path | None = None) -> ImageData:
    """The data set `name`, one of `NAMES`, with a tenth of its training images set aside for validation.

    Args:
        name: "digits" comes with scikit-learn; the others are files.
        directory: where the files are; without it, and where they are missing, they are fetched into the user's cache.

    Raises:
        DataError: files are missing and cannot be fetched, are truncated, or are not what their names say.
        MissingExtraError: the `study` extra is not installed.
    """
    if name == "digits":
        title, (train, test) = digits.TITLE, digits.load()
    elif name == "cifar10":
        title, (train, test) = cifar.load(directory)
    else:
        title, (train, test) = idx.SOURCES[name].title, idx.load(name, directory)
    train, validation = hold_out(train, 10)
    data = ImageData(name, title, train, validation, test)
    _check(data)
    return data


def _check(data: ImageData) -> None:
    """Raises DataError for what no network of the studies can learn from."""
    empty = [part for part, count in data.examples.items() if count == 0]
    if empty:
        raise DataError(f"{data.name}: expected images in every part, found none for {' and '.join(empty)}.")
    height, width = data.train.images.shape[2:]
    if height != width or height < SMALLEST or data.test.images.shape[1:] != data.train.images.shape[1:]:
        raise DataError(
            f"{data.name}: expected square images of at least {SMALLEST}x{SMALLEST}, as large for training as for "
            f"testing, got {height}x{width} and {data.test.images.shape[2]}x{data.test.images.shape[3]}."
        )
