"""The command line."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

try:
    import click
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
except ImportError as error:
    raise SystemExit(
        f"steadynorm: the command line needs optional packages ({error.name}): pip install 'steadynorm[study]'"
    ) from error

from . import __version__, records, report, runtime
from .bench.jobs import Job, PeerError, jobs
from .bench.record import open_benchmark
from .bench.show import draw, show
from .errors import SteadynormError
from .records import Run
from .report.table import table
from .study import cnn
from .study.data import NAMES, load
from .study.environment import environment
from .study.training import OPTIMIZERS, Settings
from .surgery.fold.command import folded


class PositiveFloat(click.FloatRange):
    """A positive number that is neither infinite nor nan."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value} is not a finite number.", param, ctx)


class Python(click.ParamType):
    """The name or path of a Python that can be run."""

    name = "python"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        hint = f"expected the name or path of a Python, got {value!r}, which cannot be run. Mend it or leave it out."
        return shutil.which(value) or self.fail(hint, param, ctx)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}, invoke_without_command=True
)
@click.version_option(__version__)
@click.pass_context
def cli(context: click.Context) -> None:
    """Batch normalization for PyTorch: evidence and tools."""
    if context.invoked_subcommand != "bench":  # which asks --default-allocator
        runtime.keep_freed_memory()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
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
            _fail("interrupted; no run was begun", 130)
        kept = records.read(out)
        done = f"{len(kept.runs)} of {len(kept.wanted)} runs are finished and kept in {out}"
        _fail(f"interrupted; {done}. The same command goes on; `steadynorm report {out}` draws what there is.", 130)
    console.print(table(kept))
    _write_report(console, out)


@cli.command(name="report")
@click.argument("directory", type=click.Path(path_type=Path))
def report_command(directory: Path) -> None:
    """Draw the page and the picture of the records in DIRECTORY again."""
    console = Console()
    console.print(table(records.read(directory)))
    _write_report(console, directory)


@cli.command()
@click.option("--quick", is_flag=True, help="A few shapes only: a minute.")
@click.option("--networks/--no-networks", default=True, show_default=True, help="Whole steps of a ResNet too.")
@click.option("--peers-python", type=Python(), help="A Python that has JAX or TensorFlow, to time these too.")
@click.option("--default-allocator", is_flag=True, help="Do not keep freed memory.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/bench"), show_default=True)
def bench(quick: bool, networks: bool, peers_python: str | None, default_allocator: bool, out: Path) -> None:
    """Time our layers beside torch's on this machine, for as long as half an hour.

    Everything is timed in turns, in one process, with the same threads and the same allocator. Keep the machine quiet.
    What is measured is kept at once; the same command goes on where an interrupted one stopped.
    """
    if not default_allocator:
        runtime.keep_freed_memory()
    console, path = Console(), out / "benchmark.json"
    asked = {"memory": "default" if default_allocator else "kept", "grid": "quick" if quick else "whole"}
    benchmark = open_benchmark(path, {**environment(), **asked})
    wanted = jobs(benchmark, quick, networks, peers_python)

    def keep() -> None:
        records.replace(path, benchmark.encode())

    keep()
    if before := _done(wanted):
        again = f"{before} of {len(wanted)} measurements are in {path} already; delete it to do them again"
        console.print(again, soft_wrap=True, highlight=False)
    try:
        failures = _measure(wanted, keep, console)
    except KeyboardInterrupt:
        keep()
        done = f"{_done(wanted)} of {len(wanted)} measurements are finished and kept in {path}"
        _fail(f"interrupted; {done}. The same command goes on.", 130)
    show(console, benchmark)
    records.replace(out / "benchmark.png", draw(benchmark))
    for line in failures:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"wrote {path} and {out / 'benchmark.png'}", soft_wrap=True, highlight=False)


def _done(wanted: list[Job]) -> int:
    return sum(job.done for job in wanted)


def _measure(wanted: list[Job], keep: Callable[[], None], console: Console) -> list[str]:
    """Does what is not done yet, keeping each, and returns a line for each peer that could not be timed.

    A terminal has a bar, drawn between measurements only, to disturb none; anything else a line for each.
    """
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()
    failures, left = [], [job for job in wanted if not job.done]
    done = len(wanted) - len(left)
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        bar = progress.add_task("", total=len(wanted), completed=done)
        for job in left:
            progress.update(bar, description=job.name, refresh=True)
            try:
                job.run()
            except PeerError as error:
                failures.append(str(error))
                continue
            keep()
            done += 1
            progress.update(bar, completed=done)
            if not console.is_terminal:
                console.print(f"{done} of {len(wanted)}: {job.name}", soft_wrap=True, highlight=False)
    return failures


@cli.command()
@click.argument("factory")
@click.option("--checkpoint", type=click.Path(path_type=Path), required=True, help="The model's weights: a state dict.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File of the folded model's state dict.")
@click.option("--example", metavar="SIZES", help="Shape of a random example, such as 1,3,224,224.")
@click.option("--example-inputs", help="Or example inputs, or what makes them: package.module:name.")
def fold(factory: str, checkpoint: Path, out: Path, example: str | None, example_inputs: str | None) -> None:
    """Fold the batch normalization of a trained model into the layers beside it, with the proof.

    FACTORY is package.module:name of a function that makes the model. Only weights are read from the checkpoint,
    nothing else is unpickled. The file fits steadynorm.fold(FACTORY().eval(), example).model.
    """
    console = Console()
    with console.status("folding"):
        content, found = folded(factory, checkpoint, example, example_inputs)
    console.print(str(found), soft_wrap=True, highlight=False, markup=False)
    records.replace(out, content)
    console.print(f"wrote {out}", soft_wrap=True, highlight=False)


@cli.command()
def env() -> None:
    """Say what steadynorm runs on here: versions, processor, threads, memory, compiled kernels."""
    found = {**environment(), **runtime.report()}
    width = max(map(len, found))
    for name, value in found.items():
        click.echo(f"{name:<{width}}  {value}")


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


def main() -> None:
    """Runs the command line: one line on stderr and exit code 2 for bad input, 130 after Ctrl-C."""
    try:
        cli.main(prog_name="steadynorm", standalone_mode=False)
    except click.ClickException as error:
        _fail(error.format_message(), 2)
    except SteadynormError as error:
        _fail(str(error), 2)
    except (KeyboardInterrupt, click.Abort):
        _fail("interrupted", 130)


def _fail(message: str, code: int) -> NoReturn:
    print(f"steadynorm: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
