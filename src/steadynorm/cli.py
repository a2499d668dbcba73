"""The command line."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

try:
    import click
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
except ImportError as error:
    raise SystemExit(
        f"steadynorm: the command line needs optional packages ({error.name}): pip install 'steadynorm[study]'"
    ) from error

from . import __version__, records, report, runtime
from .bench.jobs import Job, PeerError, jobs
from .bench.record import open_benchmark
from .bench.show import draw, show
from .errors import SteadynormError
from .loading import load_object
from .study import claims
from .study.compare import claims_of, normalized
from .study.compare import compare as run_compare
from .study.data import NAMES
from .study.environment import environment
from .study.runner import ENGINES, Engine
from .study.study import judge
from .study.study import run as run_study
from .study.training import OPTIMIZERS


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
@click.argument("names", nargs=-1, metavar="[CLAIM]...")
@click.option("--list", "lists", is_flag=True, help="List the claims.")
@click.option("--preset", type=click.Choice(["smoke", "quick", "full"]), default="quick", show_default=True)
@click.option(
    "--data", type=click.Choice(NAMES), help="Images to learn, for the claims that can.  [default: a claim's]"
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Folder of the data's files.")
@click.option("--seeds", type=click.IntRange(min=1), help="Repetitions.  [default: the preset's]")
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time.  [default: one a processor]")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of a run.")
@click.option(
    "--engine", type=click.Choice(ENGINES), default="local", show_default=True, help="Processes, or a cluster."
)
@click.option("--address", help="Of a running cluster.  [default: one is started here]")
@click.option("--tensorboard", is_flag=True, help="Write event files too, into OUT/tensorboard.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results.  [default: runs/CLAIM-PRESET]")
def study(
    names: tuple[str, ...],
    lists: bool,
    preset: str,
    data: str | None,
    data_dir: Path | None,
    seeds: int | None,
    jobs: int | None,
    threads: int,
    engine: str,
    address: str | None,
    tensorboard: bool,
    out: Path | None,
) -> None:
    """Measure claims about batch normalization, by default that it helps a small CNN; "all" for all of them.

    The networks of a claim are trained with everything else equal, over several seeds, and compared pair by pair. A
    finished run is kept at once, one in progress every 15 seconds; the same command goes on where an interrupted one
    stopped, and repeats nothing.
    """
    if lists:
        for claim in claims.find(["all"]).values():
            click.echo(f"{claim.name:<18}{claim.question}")
        return
    wanted = claims.find(names or ["cnn"])
    out = out or Path("runs") / f"{'-'.join(names or ['cnn']) if len(names) < 3 else 'several'}-{preset}"
    cells = [cell for claim in wanted.values() for cell in claim.cells(preset, seeds=seeds, data=data)]
    options = {"--data": data, "--data-dir": data_dir, "--seeds": seeds, "--threads": threads if threads > 1 else None}
    given = [str(part) for name, value in options.items() if value is not None for part in (name, value)]
    command = shlex.join(["steadynorm", "study", *wanted, "--preset", preset, *given, "--out", str(out)])
    where = Engine(engine, jobs, threads, address, tensorboard)
    settings = {"preset": preset, "command": command, "data_directory": data_dir, "engine": where}
    _with_bar(len(cells), out, lambda watch: run_study(wanted, cells, out, watch=watch, **settings))


def _with_bar(runs: int, out: Path, study: Callable[[Callable[[float], None]], object]) -> None:
    """Runs a study with a bar, shows what it found, and draws the report."""
    console = Console()
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns, console=console, transient=True) as progress:
            bar = progress.add_task("runs", total=runs)
            study(lambda done: progress.update(bar, completed=done))
    except KeyboardInterrupt:
        done = len(list(out.glob("runs/*/*.json")))
        how = f"The same command goes on; `steadynorm report {out}` draws what there is."
        _fail(f"interrupted; {done} of {runs} runs are finished and kept in {out}. {how}", 130)
    _show(console, out)


@cli.command(name="report")
@click.argument("directory", type=click.Path(path_type=Path))
def report_command(directory: Path) -> None:
    """Judge and draw the runs in DIRECTORY again, also those of a study that is not finished."""
    kept = records.read(directory / records.STUDY, records.Study)
    judge(claims_of(kept), directory)
    _show(Console(), directory)


@cli.command()
@click.argument("factory", metavar="PACKAGE.MODULE:FACTORY")
@click.option("--data", required=True, metavar="PACKAGE.MODULE:LOADERS", help="Makes (train, validation[, test]).")
@click.option(
    "--norms", default="batch,group,layer,none", show_default=True, help="What to compare; the first is judged."
)
@click.option("--epochs", type=click.IntRange(min=1), default=10, show_default=True, help="Passes over the data.")
@click.option("--lr", type=float, default=1e-3, show_default=True, help="Learning rate.")
@click.option("--optimizer", type=click.Choice(list(OPTIMIZERS)), default="adam", show_default=True)
@click.option("--weight-decay", type=click.FloatRange(min=0), default=0.0, show_default=True)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Repetitions.")
@click.option("--jobs", type=click.IntRange(min=1), help="Runs at a time.  [default: one a processor]")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Of a run.")
@click.option(
    "--engine", type=click.Choice(ENGINES), default="local", show_default=True, help="Processes, or a cluster."
)
@click.option("--address", help="Of a running cluster.  [default: one is started here]")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/compare"), show_default=True)
def compare(
    factory: str,
    data: str,
    norms: str,
    jobs: int | None,
    threads: int,
    engine: str,
    address: str | None,
    out: Path,
    **training: Any,
) -> None:
    """Train your network with other normalizations in place of its batch normalization, side by side, and report.

    FACTORY makes the network, LOADERS the data: loaders of batches (input, labels) for training and validation, and
    for testing if there is a third. Everything but the normalization is equal.
    """
    who = "compare"
    variants = normalized(load_object(who, factory), norms.split(","))
    given = [str(part) for name, value in training.items() for part in (f"--{name.replace('_', '-')}", value)]
    words = ["steadynorm", who, factory, "--data", data, "--norms", norms, *given, "--out", str(out)]
    where = Engine(engine, jobs, threads, address)
    runs = len(variants) * training["seeds"]
    _with_bar(
        runs,
        out,
        lambda watch: run_compare(
            variants, load_object(who, data), out=out, engine=where, command=shlex.join(words), watch=watch, **training
        ),
    )


def _show(console: Console, directory: Path) -> None:
    console.print(report.ledger(directory))
    page, *others = report.write(directory)
    folders = Counter(path.parent for path in others)
    beside = "".join(f"; {count} files in {folder}" for folder, count in folders.items())
    console.print(f"wrote {page}{beside}", soft_wrap=True, highlight=False)


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
def env() -> None:
    """Say what steadynorm runs on here: versions, processor, threads, memory, compiled kernels."""
    found = {**environment(), **runtime.report()}
    width = max(map(len, found))
    for name, value in found.items():
        click.echo(f"{name:<{width}}  {value}")


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
