"""`study`, `compare` and `report`."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import records, report
from ..loading import load_object
from ..study import claims
from ..study.compare import claims_of, normalized
from ..study.compare import compare as run_compare
from ..study.data import NAMES
from ..study.runner import ENGINES, Engine
from ..study.study import judge
from ..study.study import run as run_study
from ..study.training import OPTIMIZERS
from .failing import fail


@click.command()
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
    command = shlex.join(["steadynorm", "study", *(names or wanted), "--preset", preset, *given, "--out", str(out)])
    where = Engine(engine, jobs, threads, address, tensorboard)
    settings = {"preset": preset, "command": command, "data_directory": data_dir, "engine": where}
    _with_bar(len(cells), out, lambda watch: run_study(wanted, cells, out, watch=watch, **settings))


def _with_bar(runs: int, out: Path, study: Callable[[Callable[[float], None]], object]) -> None:
    """Runs a study with a bar, shows what it found, and draws the report."""
    console = Console()
    tell = _tenths(console, runs)
    columns = TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task("runs", total=runs)
            study(lambda done: progress.update(bar, completed=done) if console.is_terminal else tell(done))
    except KeyboardInterrupt:
        done = len(list(out.glob("runs/*/*.json")))
        how = f"The same command goes on; `steadynorm report {out}` draws what there is."
        fail(f"interrupted; {done} of {runs} runs are finished and kept in {out}. {how}", 130)
    _show(console, out)


def _tenths(console: Console, runs: int) -> Callable[[float], None]:
    """Prints a line whenever another tenth of the runs is done, for what is no terminal."""
    told = 0

    def tell(done: float) -> None:
        nonlocal told
        if int(done) > told and (int(done) == runs or 10 * (int(done) - told) >= runs):
            told = int(done)
            console.print(f"{told} of {runs} runs", highlight=False)

    return tell


@click.command(name="report")
@click.argument("directories", nargs=-1, required=True, metavar="DIRECTORY...", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report.  [default: the one directory]")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write this document instead of the page.")
@click.option("--figures", type=click.Path(path_type=Path), help="Of its pictures.  [default: figures beside it]")
def report_command(
    directories: tuple[Path, ...], out: Path | None, markdown: Path | None, figures: Path | None
) -> None:
    """Judge and draw the runs in DIRECTORY again, also those of a study that is not finished.

    Several make one report, in the folder OUT.
    """
    first, *others = directories
    if out is None and others:
        raise click.UsageError(f"expected --out FOLDER for the report of {len(directories)} studies, got none.")
    if out is not None and out.resolve() in [directory.resolve() for directory in directories]:
        raise click.UsageError(f"expected --out to be another folder than the studies', got {out}.")
    console = Console()
    several = [_judged(directory) for directory in directories]
    if out is not None:
        command = shlex.join(["steadynorm", "report", *map(str, directories), "--out", str(out)])
        records.write(out / records.EVIDENCE, records.joined(several, command))
    directory = out or first
    if markdown is None:
        _show(console, directory)
        return
    file, *pictures = report.document(directory, markdown, figures or markdown.parent / "figures")
    console.print(f"wrote {file}; {len(pictures)} pictures", soft_wrap=True, highlight=False)


def _judged(directory: Path) -> records.Evidence:
    """The evidence of a folder: of the runs in it now, if it is a study's."""
    if not records.exists(directory / records.STUDY):
        return records.read(directory / records.EVIDENCE, records.Evidence)
    study = records.read(directory / records.STUDY, records.Study)
    return judge(claims_of(study), directory)


@click.command()
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
    options = {**training, **({"threads": threads} if threads > 1 else {})}
    given = [str(part) for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
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
