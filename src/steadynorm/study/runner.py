"""A grid of runs over local processes or a cluster: each kept when finished, none repeated, none stopping the rest."""

from __future__ import annotations

import os
import random
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..errors import InvalidArgumentError, MissingExtraError, NonFiniteStatisticsWarning, RecordError
from ..records import CRASHED, Cell, Run, exists, finite, place, write
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
        jobs: runs at a time, by default as many as the processors have threads for; a cluster that runs already takes
            as many as it has room for.
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
    # Absolute, as the processes of a cluster have working directories of their own.
    places = directory.absolute(), None if data_directory is None else data_directory.absolute()
    tasks = [_Task(claims[cell.claim], cell, *places, engine) for cell in cells]
    with _watching(cells, directory, watch):
        _compute([task for task in tasks if not task.done])
    if lost := sum(not task.done for task in tasks):
        raise RecordError(
            f"{lost} of {len(tasks)} runs left no record in {places[0]}. A cluster's machines must share that folder."
        )


def run_cell(claim: Claim, cell: Cell, directory: Path, data_directory: Path | None, engine: Engine) -> None:
    """Computes one cell and writes its record, with torch's threads and random state set for it."""
    tools = Tools(cell, directory, data_directory)
    checkpoint = place(directory, cell, "pt")
    _touch(progress_file(checkpoint))
    before = torch.get_num_threads()
    torch.set_num_threads(engine.threads)
    torch.manual_seed(cell.seed)
    np.random.seed(cell.seed)  # noqa: NPY002 (a user's network or data may draw from it)
    random.seed(cell.seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NonFiniteStatisticsWarning)  # the record says that the run diverged
            outcome = claim.run(cell, tools)
        values = {name: value if value is None else finite(value) for name, value in outcome.values.items()}
        run = Run(cell, outcome.status, outcome.message, values, outcome.series, outcome.seconds)
    except RecordError:
        raise  # the folder, not the run
    except Exception as error:
        run = Run(cell, CRASHED, _place_of(error))
    finally:
        torch.set_num_threads(before)
    if engine.tensorboard:
        from .tensorboard import log

        log(directory / "tensorboard", run)
    write(place(directory, cell), run)
    for file in (checkpoint, progress_file(checkpoint)):
        file.unlink(missing_ok=True)


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
    engine = tasks[0].engine
    if engine.name not in ENGINES:
        raise InvalidArgumentError(f"study: expected an engine of {', '.join(ENGINES)}, got {engine.name!r}.")
    {"local": _by_processes, "ray": _by_ray, "dask": _by_dask}[engine.name](tasks, engine)


def _by_processes(tasks: Sequence[_Task], engine: Engine) -> None:
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky.process_executor import TerminatedWorkerError

    jobs = min(engine.jobs or max(1, _processors() // engine.threads), len(tasks))
    try:
        with parallel_config(backend="loky", inner_max_num_threads=engine.threads):
            Parallel(n_jobs=jobs)(delayed(run_cell)(*task) for task in tasks)
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
            _record_death(task, "twice")
    _compute([task for task in tasks if not task.done])


def _record_death(task: _Task, often: str) -> None:
    """Of the process that computed it."""
    run = Run(task.cell, CRASHED, f"its process died {often}, perhaps for want of memory")
    write(place(task.directory, task.cell), run)
    task.progress.unlink(missing_ok=True)


def _by_ray(tasks: Sequence[_Task], engine: Engine) -> None:
    """By Ray's own tasks: of joblib's pool, one dead worker ends all."""
    try:
        import ray
        from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError
    except ImportError as error:
        raise MissingExtraError("--engine ray", "ray") from error
    ours = not ray.is_initialized()
    if ours:
        here = engine.jobs and engine.jobs * engine.threads
        ray.init(engine.address, num_cpus=here if engine.address is None else None, log_to_driver=False)
    try:
        run = ray.remote(num_cpus=engine.threads, max_retries=1)(run_cell)
        futures = [run.remote(*task) for task in tasks]
        for task, future in zip(tasks, futures, strict=True):
            try:
                ray.get(future)
            except (WorkerCrashedError, OutOfMemoryError):
                _record_death(task, "twice")
            except RayTaskError as error:
                raise error.cause from None
    finally:
        if ours:
            ray.shutdown()


def _by_dask(tasks: Sequence[_Task], engine: Engine) -> None:
    """By Dask's own futures: joblib waits for ever for one whose worker died."""
    try:
        from dask.distributed import Client, KilledWorker, LocalCluster
    except ImportError as error:
        raise MissingExtraError("--engine dask", "dask") from error
    with ExitStack() as stack:
        cluster = engine.address
        if cluster is None:
            jobs = engine.jobs or max(1, _processors() // engine.threads)
            cluster = stack.enter_context(LocalCluster(n_workers=jobs, threads_per_worker=1))
        client = stack.enter_context(Client(cluster))
        futures = [client.submit(run_cell, *task, pure=False) for task in tasks]
        for task, future in zip(tasks, futures, strict=True):
            try:
                future.result()
            except KilledWorker:
                _record_death(task, "several times")


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
