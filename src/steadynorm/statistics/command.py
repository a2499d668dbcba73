"""What `steadynorm recalibrate` does; the only file here that needs the command line's packages."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from ..loading import build_model, load_object, load_weights_
from .feed import check_data
from .recalibrate import recalibrate_
from .shifts import Shifts

WHO = "recalibrate"


def recalibrated(
    factory: str, checkpoint: Path, data: str, console: Console, *, batches: int | None, **settings: Any
) -> tuple[bytes, Shifts]:
    """A state dict with population statistics, as `torch.save` writes it, and what has changed in it.

    Args:
        factory: `package.module:name` of a function that makes the model.
        checkpoint: its weights.
        data: `package.module:name` of batches, or of a function that makes them.
        console: where a bar shows the progress.
        batches: how many to read.
        settings: the rest of `recalibrate_`'s.
    """
    model = build_model(WHO, factory)
    load_weights_(WHO, model, checkpoint)
    found: Any = load_object(WHO, data)
    found = found() if callable(found) and (isinstance(found, type) or not isinstance(found, Iterable)) else found
    check_data(WHO, found, again=settings["sequential"])
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        shifts = recalibrate_(model, _Watched(found, batches, progress), batches=batches, **settings)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return file.getvalue(), shifts


class _Watched:
    """Data that move a bar each time they are read."""

    def __init__(self, data: Iterable[Any], batches: int | None, progress: Progress) -> None:
        self._data = data
        self._progress = progress
        lengths = [length for length in (batches, _length(data)) if length is not None]
        self._task = progress.add_task("", total=min(lengths, default=None))
        self._passes = 0

    def __iter__(self) -> Iterator[Any]:
        self._passes += 1
        self._progress.update(self._task, description=f"pass {self._passes}", completed=0)
        for batch in self._data:
            yield batch
            self._progress.advance(self._task)


def _length(data: Any) -> int | None:
    """How many batches there are; None where data do not say, as a DataLoader of an IterableDataset, which raises."""
    try:
        return len(data)
    except TypeError:
        return None
