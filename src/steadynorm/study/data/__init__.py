"""The data sets of the studies, by name."""

from __future__ import annotations

from pathlib import Path

from . import cifar, digits, idx
from .images import ImageData, Part, hold_out

__all__ = ["NAMES", "ImageData", "Part", "load"]

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
    return ImageData(name, title, train, validation, test)
