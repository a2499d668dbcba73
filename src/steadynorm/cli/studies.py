"""`study` and `report`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from .. import records, report
from ..records import Run
from ..report.table import table
from ..study import cnn
from ..study.data import NAMES, load
from ..study.training import OPTIMIZERS, Settings
from .failing import fail


class PositiveFloat(click.FloatRange):
    """A positive number that is neither infinite nor nan."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value} is not a finite number.", param, ctx)


@click.command()
@click.option("--data", type=click.Choice(NAMES), default="digits", show_default=True, help="Images to learn.")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data's files.")
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True, help="Passes over the data.")
@click.option("--batch-size", type=click.IntRange(min=2), default=64, show_default=True, help="Images a step.")
@click.option("--lr", type=PositiveFloat(), default=1e-3, show_default=True, help="Learning rate.")
@click.option("--optimizer", type=click.Choice(list(OPTIMIZERS)), default="adam", show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Repetitions.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results.  [default: runs/cnn-DATA]")
def study(
    data: str,
    data_dir: Path | None,
    epochs: int,
    batch_size: int,
    lr: float,
    optimizer: str,
    seeds: int,
    out: Path | None,
) -> None:
    """Train one CNN with and without batch normalization, everything else equal, and report.

    A finished run is kept at once; the same command goes on where an interrupted one stopped.
    """
    out = out or Path("runs") / f"cnn-{data}"
    settings = Settings(epochs, batch_size, lr, optimizer)
    console = Console()
    with console.status(f"reading {data}"):
        images = load(data, data_dir)
    try:
        with RichWatcher(console) as watcher:
            kept = cnn.run(images, data_dir, settings, seeds, out, watcher)
    except KeyboardInterrupt:
        if not records.exist(out):
            fail("interrupted; no run was begun", 130)
        kept = records.read(out)
        done = f"{len(kept.runs)} of {len(kept.wanted)} runs are finished and kept in {out}"
        fail(f"interrupted; {done}. The same command goes on; `steadynorm report {out}` draws what there is.", 130)
    console.print(table(kept))
    _write_report(console, out)


@click.command(name="report")
@click.argument("directory", type=click.Path(path_type=Path))
def report_command(directory: Path) -> None:
    """Draw the page and the picture of the records in DIRECTORY again."""
    console = Console()
    console.print(table(records.read(directory)))
    _write_report(console, directory)


def _write_report(console: Console, directory: Path) -> None:
    for path in report.write(directory):
        console.print(f"wrote {path}", soft_wrap=True, highlight=False)


class RichWatcher:
    """Shows a bar for the run in progress, with loss and accuracy, and a line for each finished one."""

    def __init__(self, console: Console) -> None:
        self._task = TaskID(0)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> RichWatcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, variant: str, seed: int, steps: int) -> None:
        self._progress.start()
        self._task = self._progress.add_task(f"{variant}, seed {seed}", total=steps, figures="")

    def step(self, loss: float, accuracy: float) -> None:
        self._progress.update(self._task, advance=1, figures=f"loss {loss:.4f}  accuracy {accuracy:.4f}")

    def end(self, run: Run) -> None:
        self._progress.remove_task(self._task)
        seconds = sum(epoch.seconds for epoch in run.epochs)
        self._progress.console.print(
            f"{run.variant}, seed {run.seed}: test accuracy {run.test_accuracy:.4f}, trained in {seconds:.1f} s",
            highlight=False,
        )
