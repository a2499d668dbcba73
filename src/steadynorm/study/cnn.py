"""The main study: the same CNN trained with and without batch normalization, everything else equal."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch import nn

from ..records import Records, Spec
from .data import ImageData
from .environment import environment
from .grid import Watcher, open_records, run_grid
from .models import cnn
from .training import Settings

VARIANTS = {"without BN": False, "with BN": True}


def run(
    data: ImageData, data_directory: Path | None, settings: Settings, seeds: int, out: Path, watcher: Watcher
) -> Records:
    """Runs the study, or what is left of it, into `out`.

    Args:
        data: what to learn; see `study.data.load`.
        data_directory: where its files are, for the command in the records.
        settings: how both networks are trained.
        seeds: how many seeds (0, 1, ...); each gives both networks the same initial weights and data order.
        out: folder of the records.
        watcher: is told of each run, step and result.

    Raises:
        RecordError: `out` holds another study, or cannot be written to.
    """
    spec = Spec(
        study="cnn",
        data=data.name,
        data_title=data.title,
        data_sha256=data.sha256,
        examples=data.examples,
        variants=list(VARIANTS),
        seeds=list(range(seeds)),
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        lr=settings.lr,
        optimizer=settings.optimizer,
    )
    kept = open_records(out, spec, command(spec, data_directory, out), environment())
    return run_grid(_builders(data), data, out, kept, watcher)


def command(spec: Spec, data_directory: Path | None, out: Path) -> str:
    """The command line that redoes the study, or goes on with it."""
    where = [] if data_directory is None else ["--data-dir", str(data_directory)]
    training = ["--epochs", spec.epochs, "--batch-size", spec.batch_size, "--lr", spec.lr]
    grid = ["--optimizer", spec.optimizer, "--seeds", len(spec.seeds), "--out", out]
    return shlex.join(map(str, ["steadynorm", "study", "--data", spec.data, *where, *training, *grid]))


def _builders(data: ImageData) -> dict[str, Callable[[], nn.Module]]:
    channels, size = data.train.images.shape[1:3]
    return {name: partial(cnn, channels, size, data.classes, batch_norm=norm) for name, norm in VARIANTS.items()}
