"""CIFAR-10, from class folders of pictures, a tar of such folders, or the binary files of its authors."""

from __future__ import annotations

import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from ...errors import DataError, MissingExtraError
from .fetch import Source, locate
from .images import Part

SOURCE = Source(
    "cifar10",
    "CIFAR-10",
    "https://www.cs.toronto.edu/~kriz/",
    {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_PICTURES = (".jpg", ".jpeg", ".png")
_RECORD = 1 + 3 * 32 * 32


def load(directory: Path | None) -> tuple[str, tuple[Part, Part]]:
    """How a report names the data, and its training and test images.

    In `directory` one of these is looked for: {train,test}/CLASS/PICTURE, alone or in cifar10/; a .tar, .tar.gz or
    .tar.xz of such folders; cifar-10-binary.tar.gz. Pictures that went through JPEG are named so.
    """
    members = None if directory is None else _in_folders(directory) or _in_tar(directory)
    if members is None:
        members = _tar_members(locate(SOURCE, directory)[0])
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {"train": [], "test": []}
    endings = set()
    for name, content in members:
        endings.add(name.suffix.lower())
        part, images, labels = _binary(name, content) if name.suffix == ".bin" else _picture(name, content)
        parts[part].append((images, labels))
    for part, batches in parts.items():
        if not batches:
            raise DataError(f"cifar10: expected {part} images, found none {_where(directory)}.")
    title = SOURCE.title + (" (JPEG)" if endings & {".jpg", ".jpeg"} else "")
    return title, (_join(parts["train"]), _join(parts["test"]))


def _where(directory: Path | None) -> str:
    return "in the fetched archive" if directory is None else f"in {directory}"


def _join(batches: list[tuple[np.ndarray, np.ndarray]]) -> Part:
    images, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    return Part(torch.from_numpy(images), torch.from_numpy(labels).long())


def _in_folders(directory: Path) -> Iterator[tuple[PurePosixPath, bytes]] | None:
    for root in (directory, directory / "cifar10"):
        if (root / "train").is_dir() and (root / "test").is_dir():
            pictures = sorted(p for p in root.glob("*/*/*") if p.suffix.lower() in _PICTURES and p.is_file())
            return ((PurePosixPath(path.as_posix()), path.read_bytes()) for path in pictures)
    return None


def _in_tar(directory: Path) -> Iterator[tuple[PurePosixPath, bytes]] | None:
    tars = [path for path in sorted(directory.glob("*cifar*10*.tar*")) if "100" not in path.name]
    readable = [path for path in tars if "python" not in path.name]
    if tars and not readable:
        raise DataError(
            f"{tars[0]} holds pickles, which are never read. Put its binary version, {next(iter(SOURCE.md5))}, there."
        )
    return _tar_members(readable[0]) if readable else None


def _tar_members(path: Path) -> Iterator[tuple[PurePosixPath, bytes]]:
    """Pictures and binary batches in a tar, read in one pass."""
    try:
        with tarfile.open(path, mode="r|*") as tar:
            for member in tar:
                name = PurePosixPath(member.name)
                file = tar.extractfile(member) if name.suffix.lower() in (*_PICTURES, ".bin") else None
                if file is not None:
                    yield name, file.read()
    except (tarfile.TarError, EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise DataError(f"{path} is damaged or truncated ({error}). Fetch it again.") from error


def _picture(name: PurePosixPath, content: bytes) -> tuple[str, np.ndarray, np.ndarray]:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("reading pictures", "study") from error
    part, label = name.parts[-3:-1] if len(name.parts) >= 3 else ("", "")
    if part not in ("train", "test") or label not in CLASSES:
        raise DataError(
            f"cifar10: expected pictures as {{train,test}}/CLASS/PICTURE with CLASS one of {', '.join(CLASSES)}, "
            f"got {name}."
        )
    try:
        with Image.open(io.BytesIO(content)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"cifar10: cannot read the picture {name} ({error}).") from error
    if pixels.shape != (32, 32, 3):
        raise DataError(f"cifar10: expected pictures of 32x32, got {pixels.shape[1]}x{pixels.shape[0]} in {name}.")
    return part, pixels.transpose(2, 0, 1)[None], np.array([CLASSES.index(label)])


def _binary(name: PurePosixPath, content: bytes) -> tuple[str, np.ndarray, np.ndarray]:
    """A batch of records: one byte of label, then 32x32 bytes of red, of green and of blue."""
    if not content or len(content) % _RECORD:
        raise DataError(f"cifar10: expected {name} to hold records of {_RECORD} bytes, got {len(content)} bytes.")
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    if records[:, 0].max() >= len(CLASSES):
        raise DataError(f"cifar10: expected labels 0 to 9, got {records[:, 0].max()} in {name}.")
    images = records[:, 1:].reshape(-1, 3, 32, 32)
    return "test" if name.stem.startswith("test") else "train", images, records[:, 0]
