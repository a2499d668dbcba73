"""Finding the files of a data set: in the folder given, else in the cache, else fetched into it and checked."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from ...errors import DataError, MissingExtraError


@dataclass(frozen=True)
class Source:
    """A data set's files: the names and md5 of what lies under one address. `title` is how a report names it."""

    name: str
    title: str
    address: str
    md5: dict[str, str]


def locate(source: Source, directory: Path | None) -> list[Path]:
    """A path for each file of `source`, in its order.

    They are looked for in `directory` and its subfolder of the source's name, where a file may be without its .gz.

    Raises:
        DataError: a file is missing and cannot be fetched.
    """
    for folder in () if directory is None else (directory, directory / source.name):
        found = [path for file in source.md5 if (path := _present(folder, file)) is not None]
        if len(found) == len(source.md5):
            return found
    try:
        import pooch
    except ImportError as error:
        raise MissingExtraError("fetching data", "study") from error
    pooch.get_logger().setLevel(logging.ERROR)
    cache = Path(pooch.os_cache("steadynorm")) / source.name
    known = {file: f"md5:{digest}" for file, digest in source.md5.items()}
    registry = pooch.create(path=cache, base_url=source.address, registry=known)
    try:
        return [Path(registry.fetch(file)) for file in source.md5]
    except (OSError, ValueError) as error:
        looked = " and ".join(str(place) for place in (directory, cache) if place is not None)
        raise DataError(
            f"{source.name}: expected the files {', '.join(source.md5)} in {looked}; they are not there and could not "
            f"be fetched ({type(error).__name__}). Put them in a folder and name it with --data-dir."
        ) from error


def _present(directory: Path, file: str) -> Path | None:
    candidates = (directory / file, directory / file.removesuffix(".gz"))
    return next((path for path in candidates if path.is_file()), None)
