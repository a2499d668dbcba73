"""`bench`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import records, runtime
from ..bench import documents
from ..bench.jobs import Job, jobs
from ..bench.processes import NotMeasuredError
from ..bench.record import open_benchmark
from ..bench.show import draw, show
from ..study.environment import environment
from .failing import fail


class Python(click.ParamType):
    """The name or path of a Python that can be run."""

    name = "python"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        hint = f"expected the name or path of a Python, got {value!r}, which cannot be run. Mend it or leave it out."
        return shutil.which(value) or self.fail(hint, param, ctx)


class Source(click.Path):
    """A folder that pip can install."""

    name = "directory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(str(super().convert(value, param, ctx)))
        if not (path / "pyproject.toml").is_file():
            self.fail(
                f"expected a folder with a pyproject.toml, as steadynorm's source has, got {str(path)!r}.", param, ctx
            )
        return path


@click.command()
@click.option("--quick", is_flag=True, help="A few shapes only: two minutes.")
@click.option("--networks/--no-networks", default=True, show_default=True, help="Whole steps of a ResNet too.")
@click.option("--peers-python", type=Python(), help="A Python that has JAX or TensorFlow, to time these too.")
@click.option("--install-from", type=Source(), help="Time `pip install` of this source too.")
@click.option("--default-allocator", is_flag=True, help="Do not keep freed memory.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/bench"), show_default=True)
@click.option(
    "--markdown",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Measure nothing; fill the figures in OUT into this document, and others if repeated.",
)
@click.option("--figures", type=click.Path(path_type=Path), help="Of the picture then.  [default: figures in OUT]")
def bench(
    quick: bool,
    networks: bool,
    peers_python: str | None,
    install_from: Path | None,
    default_allocator: bool,
    out: Path,
    markdown: tuple[Path, ...],
    figures: Path | None,
) -> None:
    """Time our layers beside torch's on this machine, for as long as half an hour.

    Everything is timed in turns, in one process, with the same threads and the same allocator. Keep the machine quiet.
    What is measured is kept at once; the same command goes on where an interrupted one stopped. What matters most is
    measured first.
    """
    if markdown:
        content = documents.written(out / "benchmark.json", list(markdown), figures or out / "figures")
        for file, text in content.items():
            records.replace(file, text)
        click.echo(f"wrote {', '.join(map(str, content))}")
        return
    if figures:
        raise click.UsageError("expected --markdown DOCUMENT with --figures, got none.")
    if not default_allocator:
        runtime.keep_freed_memory()
    console, path = Console(), out / "benchmark.json"
    asked = {"memory": "default" if default_allocator else "kept", "grid": "quick" if quick else "whole"}
    benchmark = open_benchmark(path, {**environment(), **asked})
    wanted = jobs(benchmark, quick, networks, peers_python, install_from)

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
        fail(f"interrupted; {done}. The same command goes on.", 130)
    show(console, benchmark)
    records.replace(out / "benchmark.png", draw(benchmark))
    for line in failures:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    console.print(f"wrote {path} and {out / 'benchmark.png'}", soft_wrap=True, highlight=False)


def _done(wanted: list[Job]) -> int:
    return sum(job.done for job in wanted)


def _measure(wanted: list[Job], keep: Callable[[], None], console: Console) -> list[str]:
    """Does what is not done yet, keeping each, and returns a line for each that could not be measured.

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
            except NotMeasuredError as error:
                failures.append(str(error))
                continue
            keep()
            done += 1
            progress.update(bar, completed=done)
            if not console.is_terminal:
                console.print(f"{done} of {len(wanted)}: {job.name}", soft_wrap=True, highlight=False)
    return failures
