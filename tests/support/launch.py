"""Real ranks: processes of a gloo group, started for one function and gone after it."""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing


class Outcome(NamedTuple):
    """What a rank returned, or the text of what it raised, "died" for one that said nothing."""

    result: Any
    error: str | None = None


def launch(function: Callable[..., Any], ranks: int, *arguments: Any, limit: float = 300) -> list[Any]:
    """Runs `function(rank, *arguments)` in each rank of a gloo group of so many, and gives what they return.

    Args:
        function: of a test module, as each rank imports it.
        ranks: how many.
        arguments: anything that can be pickled.
        limit: seconds until all ranks are ended, which is an error; the first run on a machine compiles kernels.

    Raises:
        AssertionError: a rank raised or died; the message holds its traceback.
    """
    outcomes = outcomes_of(function, ranks, *arguments, limit=limit)
    failed = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(outcomes) if error is not None]
    assert not failed, "\n".join(failed)
    return [outcome.result for outcome in outcomes]


def outcomes_of(
    function: Callable[..., Any], ranks: int, *arguments: Any, limit: float = 300, timeout: float = 120
) -> list[Outcome]:
    """As `launch`, for ranks that may fail; `timeout` is the group's own, in seconds."""
    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "steadynorm", "pytest"])
    with tempfile.TemporaryDirectory() as folder:
        given = ranks, folder, timeout, function, arguments
        processes = [context.Process(target=_rank, args=(rank, *given)) for rank in range(ranks)]
        for process in processes:
            process.start()
        _wait(processes, limit)
        return [_read(Path(folder) / str(rank)) for rank in range(ranks)]


def _wait(processes: Sequence[BaseProcess], limit: float) -> None:
    end = time.monotonic() + limit
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    late = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    assert not late, f"ranks {late} were not done after {limit} s"


def _read(file: Path) -> Outcome:
    return pickle.loads(file.read_bytes()) if file.exists() else Outcome(None, "died")


def _rank(
    rank: int, ranks: int, folder: str, timeout: float, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    """The life of a rank. It writes its outcome before it leaves the group, so that the others may still need it."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # whatever the machine's name resolves to
    where = f"file://{folder}/group"
    dist.init_process_group("gloo", where, timedelta(seconds=timeout), world_size=ranks, rank=rank)
    dist.barrier()  # all are connected, before one may die
    try:
        outcome = Outcome(function(rank, *arguments))
    except BaseException:
        outcome = Outcome(None, traceback.format_exc())
    (Path(folder) / str(rank)).write_bytes(pickle.dumps(outcome))
    if dist.is_initialized():
        dist.destroy_process_group()
