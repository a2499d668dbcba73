"""MNIST and Fashion-MNIST, from IDX files."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch

from ...errors import DataError
from .fetch import Source, locate
from .images import Part

SOURCES = {
    "mnist": Source(
        "mnist",
        "MNIST",
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": Source(
        "fashion-mnist",
        "Fashion-MNIST",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
}


def load(name: str, directory: Path | None) -> tuple[Part, Part]:
    """Training and test images and labels of "mnist" or "fashion-mnist"."""
    train_images, train_labels, test_images, test_labels = locate(SOURCES[name], directory)
    return _part(train_images, train_labels), _part(test_images, test_labels)


def _part(images_path: Path, labels_path: Path) -> Part:
    images, labels = read(images_path, dimensions=3), read(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise DataError(f"{images_path} has {len(images)} images, but {labels_path} has {len(labels)} labels.")
    if labels.max(initial=0) > 9:
        raise DataError(f"{labels_path}: expected labels 0 to 9, got {labels.max()}. Is it another data set's file?")
    return Part(torch.from_numpy(images).unsqueeze(1), torch.from_numpy(labels).long())


def read(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes, gzipped or not.

    Raises:
        DataError: it is truncated or damaged, or is not such a file.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, OSError) as error:
        raise DataError(f"{path} is damaged or truncated ({error}). Fetch it again.") from error
    magic = (0x08 << 8) | dimensions
    header = 4 + 4 * dimensions
    if int.from_bytes(content[:4], "big") != magic:
        raise DataError(
            f"{path}: expected an IDX file with magic number 0x{magic:08x}, got 0x{content[:4].hex() or '0'}. "
            "Is it another file under this name?"
        )
    if len(content) < header:
        raise DataError(f"{path} is truncated: expected at least {header} bytes, got {len(content)}. Fetch it again.")
    shape = tuple(np.frombuffer(content, ">u4", dimensions, offset=4).tolist())
    expected = header + int(np.prod(shape))
    if len(content) != expected:
        raise DataError(f"{path} is truncated: expected {expected} bytes for shape {shape}, got {len(content)}.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy()
