"""Memory that is kept, in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from steadynorm import kernels, runtime
from steadynorm.errors import InvalidArgumentError

from .support.cores import without_core
from .support.setups import core

RESIDENT = """
import pathlib, resource, sys
import torch
import steadynorm as sn
if sys.argv[1] == "kept":
    assert sn.runtime.keep_freed_memory() and sn.runtime.keep_freed_memory()
def resident():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
before = resident()
tensor = torch.ones(50_000_000)
del tensor
print((resident() - before) // 1_000_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_stays_where_it_is_kept() -> None:
    """200 MB are freed: handed back to the system by default, still resident where memory is kept."""
    left = {
        how: int(
            subprocess.run([sys.executable, "-c", RESIDENT, how], capture_output=True, check=True, text=True).stdout
        )
        for how in ("default", "kept")
    }
    assert left["default"] < 50
    assert left["kept"] > 190


def test_report_without_a_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "compiled", without_core)
    assert runtime.report()["kernels"].startswith("not compiled")


@pytest.mark.parametrize("name", core.instruction_sets())
def test_instruction_set_of_the_environment(name: str) -> None:
    command = [sys.executable, "-m", "steadynorm.cli", "env"]
    environment = {**os.environ, core.ASKED: name}
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=environment)
    assert f"compiled, {name} of " in done.stdout


def test_instruction_set_that_is_not_there() -> None:
    with pytest.raises(InvalidArgumentError, match=r"STEADYNORM_INSTRUCTION_SET: expected one of .*, got 'mmx'"):
        core.use_instruction_set("mmx")


def test_env_says_what_kernels_run_on() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "steadynorm.cli", "env"], capture_output=True, check=True, text=True
    ).stdout
    found = dict(line.split("  ", maxsplit=1) for line in done.splitlines())
    assert found["kernels"].strip().startswith("compiled, ")
    if sys.platform == "linux":
        assert found["freed memory"].strip().startswith("kept")
