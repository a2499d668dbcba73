"""What a run is given: its data, and a keeper of its state, so that a killed run goes on where it was."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ..records import Cell, place, replace
from .data import ImageData, load

INTERVAL = 15.0
"""Seconds between checkpoints: what a kill costs at most."""


class Keeper:
    """Keeps a run's state in a file while it is in progress.

    Args:
        path: the file; None to keep nothing.
        interval: seconds between checkpoints.
    """

    def __init__(self, path: Path | None = None, interval: float = INTERVAL) -> None:
        self._path, self._interval = path, interval
        self._saved = self._told = time.monotonic()

    def restore(self) -> dict[str, Any] | None:
        """The state an interrupted run was kept with, or None; one that cannot be read is as if it were not there."""
        if self._path is None or not self._path.exists():
            return None
        try:
            return torch.load(self._path, weights_only=True)
        except Exception:  # of a damaged file, torch raises many kinds
            return None

    def offer(self, done: int, total: int, state: Callable[[], dict[str, Any]]) -> None:
        """Says how far the run is, and keeps its state if the last time was long enough ago.

        Args:
            done, total: steps.
            state: gives tensors, numbers, strings, lists and dicts of these.
        """
        now = time.monotonic()
        if self._path is None:
            return
        if now - self._told >= 1:
            self._told = now
            with suppress(OSError):  # a full disk is for what is kept to report
                progress_file(self._path).write_text(f"{done} {total}")
        if now - self._saved >= self._interval:
            buffer = io.BytesIO()
            torch.save(state(), buffer)
            replace(self._path, buffer.getvalue())
            self._saved = time.monotonic()


def progress_file(checkpoint: Path) -> Path:
    """Beside a checkpoint: how far the run is, while it runs."""
    return checkpoint.with_suffix(".progress")


class Tools:
    """What a run is given.

    Args:
        cell: the run.
        directory: the study's folder; None to keep nothing.
        data_directory: where data files are.
    """

    def __init__(self, cell: Cell, directory: Path | None = None, data_directory: Path | None = None) -> None:
        self._cell, self._directory, self._data_directory = cell, directory, data_directory
        self.keeper = Keeper(None if directory is None else place(directory, cell, "pt"))

    def data(self) -> ImageData:
        """The data set that the cell's settings name, or as many of its images as they say."""
        settings: dict[str, Any] = self._cell.settings
        data = cached(settings["data"], self._data_directory)
        return data.at_most(settings["images"]) if "images" in settings else data

    def file(self, ending: str) -> Path | None:
        """A file beside the run's record, for what is too large for it; None if nothing is kept."""
        return None if self._directory is None else place(self._directory, self._cell, ending)


@lru_cache(maxsize=2)
def cached(name: str, directory: Path | None) -> ImageData:
    """A data set, once a process."""
    return load(name, directory)
