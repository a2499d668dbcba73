"""A rank that does not come, or is gone: the others end with an error that names the layer, within the timeout."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist

import steadynorm as sn

from ..support.launch import Outcome, launch, outcomes_of
from ..support.refusals import expect_unchanged
from ..support.twins import normal

TIMEOUT = 1.0


class Failure(NamedTuple):
    """What the rank that waited saw."""

    message: str
    kind: str
    seconds: float


def model_of(group: Any = None) -> torch.nn.Module:
    block = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    return sn.SyncBatchNorm.convert_sync_batchnorm(torch.nn.ModuleDict({"block": block}), group)["block"].double()  # type: ignore[index]


def failure(call: Callable[[], Any]) -> Failure:
    start = time.monotonic()
    with pytest.raises(RuntimeError) as info:
        call()
    kind = type(info.value)
    return Failure(str(info.value), f"{kind.__module__}.{kind.__name__}", time.monotonic() - start)


def groups(count: int) -> list[Any]:
    return [dist.new_group([0, 1], timeout=timedelta(seconds=TIMEOUT)) for _ in range(count)]


def waits_alone(rank: int) -> dict[str, Failure] | None:
    """Rank 1 leaves out a forward, then a backward, a compiled forward, and in the end dies."""
    forward, backward, compiled = groups(3)
    model_of()(normal(4, 3)).sum().backward()  # compiles kernels, in whatever time
    dist.barrier()
    model = model_of(backward)
    y = model(normal(4, 3))
    if rank == 1:
        time.sleep(3 * TIMEOUT + 2)
        os._exit(1)
    found = {"backward": failure(lambda: y.sum().backward())}
    late = model_of(forward)
    expect_unchanged(late, lambda: found.update(forward=failure(lambda: late(normal(4, 3)))))
    program = torch.compile(model_of(compiled), fullgraph=True, backend="aot_eager")
    found["compiled"] = failure(lambda: program(normal(4, 3)))
    found["dead"] = failure(lambda: model_of()(normal(4, 3)))
    return found


@pytest.fixture(scope="module")
def found() -> dict[str, Failure]:
    waiting, dead = outcomes_of(waits_alone, 2)
    assert dead == Outcome(None, "died")
    assert waiting.error is None, waiting.error
    return waiting.result


@pytest.mark.parametrize("where", ["forward", "backward", "compiled", "dead"])
def test_says_where(where: str, found: dict[str, Failure]) -> None:
    """Within a minute more than the timeout, however busy the machine is; torch's default is half an hour."""
    message, kind, seconds = found[where]
    assert kind == "steadynorm.errors.SynchronizationError"
    assert message.startswith("SyncBatchNorm(num_features=4) at 'block.1': the ranks could not exchange their stat")
    assert "Look at the other ranks' output first" in message
    if where != "compiled":
        assert seconds < TIMEOUT + 60


def test_a_waiting_rank_waits_for_the_timeout(found: dict[str, Failure]) -> None:
    assert all(found[where].seconds > TIMEOUT - 0.5 for where in ("forward", "backward"))


def left_groups(rank: int) -> list[str]:
    """A layer whose group is no more, alone and then with all of torch.distributed."""
    (group,) = groups(1)
    model = model_of(group)
    dist.destroy_process_group(group)
    messages = [failure(lambda: model(normal(4, 3))).message]
    dist.destroy_process_group()
    messages.append(failure(lambda: model(normal(4, 3))).message)
    messages.append(failure(lambda: sn.SyncBatchNorm(3, process_group=group)).message)
    return messages


def test_left_groups() -> None:
    for gone, *uninitialized in launch(left_groups, 2):
        assert "could not exchange their statistics: Could not resolve the process group" in gone
        assert all("torch.distributed is not initialized" in message for message in uninitialized)
        assert "'block.1'" in uninitialized[0]
