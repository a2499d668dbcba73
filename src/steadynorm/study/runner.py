"""A grid of runs over local processes or a cluster: each kept when finished, none repeated, none stopping the rest."""

from __future__ import annotations

import os
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import InvalidArgumentError, MissingExtraError, NonFiniteStatisticsWarning, RecordError
from ..records import CRASHED, Cell, Run, exists, place, write
from .claim import Claim
from .tools import Tools, progress_file

ENGINES = ("local", "ray", "dask")
WATCHED = 64
"""So many of the runs that are next in turn are looked at for how far they are."""


@dataclass(frozen=True)
class Engine:
    """Where runs are computed.

    Attributes:
        name: "local" for processes of this machine, "ray" or "dask" for a cluster whose machines share the folder of
            the study.
        jobs: runs at a time; by default as many as the processors (of the cluster) have threads for.
        threads: of a run, which its bits depend on.
        address: of a running cluster; None starts one here.
        tensorboard: write event files for TensorBoard too.
    """

    name: str = "local"
    jobs: int | None = None
    threads: int = 1
    address: str | None = None
    tensorboard: bool = False


def run_grid(
    claims: Mapping[str, Claim],
    cells: Sequence[Cell],
    directory: Path,
    data_directory: Path | None,
    engine: Engine,
    watch: Callable[[float], None] = lambda done: None,
) -> None:
    """Computes every cell that has no record in `directory` yet; those in progress go on from their checkpoints.

    A run that raises, or whose process dies, is recorded as crashed. A kill of everything loses no finished run, and of
    those in progress what came after their last checkpoint.

    Args:
        claims: by name, what the cells belong to.
        cells: the runs.
        directory: the study's folder.
        data_directory: where data files are.
        engine: where to compute.
        watch: is told, about once a second, how many runs are done, parts of runs included.

    Raises:
        RecordError: the folder cannot be written to.
        MissingExtraError: the engine is not installed.
    """
    tasks = [_Task(claims[cell.claim], cell, directory, data_directory, engine) for cell in cells]
    with _watching(cells, directory, watch):
        _compute([task for task in tasks if not task.done])


def run_cell(claim: Claim, cell: Cell, directory: Path, data_directory: Path | None, engine: Engine) -> None:
    """Computes one cell and writes its record, with torch's threads and random state set for it."""
    tools = Tools(cell, directory, data_directory)
    checkpoint = place(directory, cell, "pt")
    _touch(progress_file(checkpoint))
    before = torch.get_num_threads()
    torch.set_num_threads(engine.threads)
    torch.manual_seed(cell.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NonFiniteStatisticsWarning)  # the record says that the run diverged
            outcome = claim.run(cell, tools)
        run = Run(cell, outcome.status, outcome.message, outcome.values, outcome.series, outcome.seconds)
    except RecordError:
        raise  # the folder, not the run
    except Exception as error:
        run = Run(cell, CRASHED, _place_of(error))
    finally:
        torch.set_num_threads(before)
    write(place(directory, cell), run)
    for file in (checkpoint, progress_file(checkpoint)):
        file.unlink(missing_ok=True)
    if engine.tensorboard:
        from .tensorboard import log

        log(directory / "tensorboard", run)


def _touch(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise RecordError(f"cannot write to {file.parent}: {error.strerror}. Choose another --out.") from error


def _place_of(error: Exception) -> str:
    """The error, and the line it comes from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({Path(last.filename).name}, line {last.lineno})"


class _Task(NamedTuple):
    """The arguments of `run_cell`."""

    claim: Claim
    cell: Cell
    directory: Path
    data_directory: Path | None
    engine: Engine

    @property
    def done(self) -> bool:
        return exists(place(self.directory, self.cell))

    @property
    def progress(self) -> Path:
        return progress_file(place(self.directory, self.cell, "pt"))


def _compute(tasks: Sequence[_Task]) -> None:
    """Computes all of them, which have one engine."""
    if not tasks:
        return
    from joblib import Parallel, delayed
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    engine = tasks[0].engine
    with _backend(engine) as jobs:
        local = engine.name == "local"
        try:
            Parallel(n_jobs=min(jobs, len(tasks)) if local else jobs, pre_dispatch="2*n_jobs" if local else "all")(
                delayed(run_cell)(*task) for task in tasks
            )
        except TerminatedWorkerError:
            _isolate(tasks)


def _isolate(tasks: Sequence[_Task]) -> None:
    """After a worker died: those that were in progress alone, to find the one that kills its process; then the rest."""
    from joblib.externals.loky import ProcessPoolExecutor
    from joblib.externals.loky.process_executor import BrokenProcessPool

    for task in tasks:
        if task.done or not task.progress.exists():
            continue
        try:
            with ProcessPoolExecutor(max_workers=1) as alone:
                alone.submit(run_cell, *task).result()
        except BrokenProcessPool:
            run = Run(task.cell, CRASHED, "its process died twice, perhaps for want of memory")
            write(place(task.directory, task.cell), run)
            task.progress.unlink(missing_ok=True)
    _compute([task for task in tasks if not task.done])


@contextmanager
def _backend(engine: Engine) -> Iterator[int]:
    """joblib's backend for the engine, and how many runs at a time."""
    if engine.name not in ENGINES:
        raise InvalidArgumentError(f"study: expected an engine of {', '.join(ENGINES)}, got {engine.name!r}.")
    import joblib

    with ExitStack() as stack:
        if engine.name == "local":
            jobs = engine.jobs or max(1, _processors() // engine.threads)
            stack.enter_context(joblib.parallel_config(backend="loky", inner_max_num_threads=engine.threads))
        elif engine.name == "ray":
            jobs = stack.enter_context(_ray(engine))
            stack.enter_context(joblib.parallel_config(backend="ray"))
        else:
            jobs = stack.enter_context(_dask(engine))
            stack.enter_context(joblib.parallel_config(backend="dask"))
        yield jobs


@contextmanager
def _ray(engine: Engine) -> Iterator[int]:
    try:
        import ray
        from ray.util.joblib import register_ray
    except ImportError as error:
        raise MissingExtraError("--engine ray", "ray") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(engine.address, num_cpus=engine.jobs if engine.address is None else None, log_to_driver=False)
    register_ray()
    try:
        yield engine.jobs or int(ray.cluster_resources().get("CPU", 1)) // engine.threads
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _dask(engine: Engine) -> Iterator[int]:
    try:
        from dask.distributed import Client, LocalCluster
    except ImportError as error:
        raise MissingExtraError("--engine dask", "dask") from error
    workers = engine.jobs or _processors()
    with Client(engine.address or LocalCluster(n_workers=workers, threads_per_worker=1)) as client:
        yield engine.jobs or len(client.scheduler_info()["workers"])


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _watching(cells: Sequence[Cell], directory: Path, watch: Callable[[float], None]) -> Iterator[None]:
    """Tells `watch` from the files there are, in a thread, until the end."""
    over, left = threading.Event(), list(cells)

    def look() -> None:
        left[:] = [cell for cell in left if not exists(place(directory, cell))]
        watch(len(cells) - len(left) + sum(_share(directory, cell) for cell in left[:WATCHED]))

    def go_on_looking() -> None:
        while not over.wait(1.0):
            look()

    thread = threading.Thread(target=go_on_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        look()


def _share(directory: Path, cell: Cell) -> float:
    """How much of a cell in progress is done, in [0, 1]."""
    try:
        done, total = progress_file(place(directory, cell, "pt")).read_text().split()
        return min(1.0, int(done) / int(total))
    except (OSError, ValueError):  # not begun, or this moment being written
        return 0.0
