"""`steadynorm bench` on four cases that take no time: what it keeps, skips, refuses and says."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from steadynorm import cli
from steadynorm.bench import cold, exactness, fresh, jobs, relatives, small
from steadynorm.bench.cases import FIRST, FORWARD, LAST, RELU, TRAINING, Case
from steadynorm.bench.processes import NotMeasuredError
from steadynorm.bench.record import Benchmark, read
from steadynorm.cli import benchmarks

from ..support.command import steadynorm
from .rows import fresh_row, row, timing

CASES = [Case((4, 3, 5, 5), order, "float32", RELU, mode) for order in (FIRST, LAST) for mode in (TRAINING, FORWARD)]


class Bench:
    """Runs the command in this process, with measurements made up; remembers them, and may break one off."""

    def __init__(self, out: Path, patch: pytest.MonkeyPatch) -> None:
        self.path, self.patch = out / "benchmark.json", patch
        self.options = ["--quick", "--no-networks"]
        self.interrupt_at: int | None = None
        self.measured: list[Case] = []
        self.kept_before: list[int] = []
        self.memory_kept = 0
        patch.setattr(jobs, "grid", lambda quick: CASES)
        for kind in (cold, small, fresh, exactness, relatives):
            patch.setattr(kind, "keys", lambda quick: [])
        patch.setattr(jobs, "_case", self._case)
        patch.setattr(cli.runtime, "keep_freed_memory", self._keep_memory)

    def __call__(self, *arguments: str | Path) -> int | str | None:
        """The exit code."""
        command = ["bench", *self.options, "--out", self.path.parent, *arguments]
        return steadynorm(self.patch, *map(str, command))

    @property
    def kept(self) -> list[Any]:
        found = read(self.path)
        assert found is not None
        return found.cases

    def _case(self, case: Case) -> list[dict[str, Any]]:
        self.kept_before.append(len(self.kept))
        if len(self.measured) == self.interrupt_at:
            raise KeyboardInterrupt
        self.measured.append(case)
        return [row(4.0, case.shape, order=case.order, mode=case.mode)]

    def _keep_memory(self) -> None:
        self.memory_kept += 1


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path / "o", monkeypatch)


def test_everything_once(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench() == 0
    assert bench.measured == CASES
    assert bench.kept_before == [0, 1, 2, 3]
    assert [(row["order"], row["mode"]) for row in bench.kept] == [(case.order, case.mode) for case in CASES]
    assert {path.name for path in bench.path.parent.iterdir()} == {"benchmark.json", "benchmark.png"}
    said = capsys.readouterr().out
    assert "3 of 4: (4, 3, 5, 5), channels last, float32, relu, forward+backward\n" in said
    assert "already" not in said


def test_an_interrupted_benchmark_goes_on(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.interrupt_at = 2
    assert bench() == 130
    assert capsys.readouterr().err == (
        f"steadynorm: interrupted; 2 of 4 measurements are finished and kept in {bench.path}. "
        "The same command goes on.\n"
    )
    first = bench.kept
    assert len(first) == 2
    bench.interrupt_at, bench.measured = None, []
    assert bench() == 0
    assert f"2 of 4 measurements are in {bench.path} already; delete it" in capsys.readouterr().out
    assert bench.measured == CASES[2:]
    assert bench.kept[:2] == first and len(bench.kept) == 4


def test_a_finished_benchmark_measures_nothing(bench: Bench) -> None:
    assert bench() == 0
    before = bench.path.read_bytes()
    bench.measured = []
    assert bench() == 0
    assert bench.measured == []
    assert bench.path.read_bytes() == before


def test_networks_may_be_added_later(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    timings = {name: timing(2.0) for name in ("steadynorm", "torch", "no BN")}
    monkeypatch.setattr(jobs, "_network", lambda key: [{**key, "timings": timings}])
    monkeypatch.setattr(jobs, "_studies", lambda key: [{**key, "timings": timings}])
    monkeypatch.setattr(
        jobs, "_folding", lambda key, compiles: [{**key, "timings": {**timings, "folded": timing(2.0)}}]
    )
    assert bench() == 0
    bench.measured = []
    assert bench("--networks") == 0
    found = read(bench.path)
    assert found is not None and (len(found.networks), len(found.folding), len(found.studies)) == (4, 2, 2)
    assert bench.measured == []


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["--default-allocator"], {}, "memory: 'kept', now 'default'"),
        ([], {"torch": "0.1"}, "now '0.1'"),
        ([], {"threads": "99"}, "now '99'"),
    ],
    ids=str,
)
def test_other_settings_are_refused(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    environment: dict[str, str],
    message: str,
) -> None:
    assert bench() == 0
    before, bench.measured = bench.path.read_bytes(), []
    here = benchmarks.environment()
    monkeypatch.setattr(benchmarks, "environment", lambda: {**here, **environment})
    assert bench(*arguments) == 2
    said = capsys.readouterr().err
    assert f"{bench.path} holds a benchmark with other settings (" in said
    assert message in said and "Choose another --out, or delete that file." in said
    assert bench.measured == []
    assert bench.path.read_bytes() == before


def test_the_whole_grid_does_not_go_on_with_a_quick_one(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench() == 0
    bench.options = ["--no-networks"]
    assert bench() == 2
    assert "(grid: 'quick', now 'whole')" in capsys.readouterr().err


def test_a_process_that_fails_leaves_the_rest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What else is wanted is measured, the failure is said at the end, and is tried again."""

    def fails(what: str) -> list[dict[str, Any]]:
        raise NotMeasuredError(f"{what} was not measured. Mend that.")

    monkeypatch.setattr(fresh, "keys", lambda quick: [{"what": "first step"}])
    monkeypatch.setattr(fresh, "measure", fails)
    assert bench() == 0
    *_, failed, wrote = capsys.readouterr().out.splitlines()
    assert failed == "first step was not measured. Mend that." and wrote.startswith("wrote ")
    assert bench.measured == CASES
    monkeypatch.setattr(fresh, "measure", lambda what: [fresh_row()])
    assert bench() == 0
    found = read(bench.path)
    assert found is not None and found.fresh == [fresh_row()]


def test_a_damaged_file_is_refused_and_left(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.path.parent.mkdir()
    bench.path.write_text('{"format"')
    assert bench() == 2
    said = capsys.readouterr().err
    assert said.startswith(f"steadynorm: cannot read {bench.path}: ") and said.count("\n") == 1
    assert bench.measured == []
    assert bench.path.read_text() == '{"format"'


def test_a_folder_that_cannot_be_made_is_said_before_anything_is_timed(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.path.parent.write_text("")
    assert bench() == 2
    assert f"cannot write to {bench.path.parent}: File exists. Choose another --out." in capsys.readouterr().err
    assert bench.measured == []


def test_a_full_disk_leaves_what_was_kept(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sync = os.fsync

    def full(handle: int) -> None:
        if len(bench.measured) == 3:
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr("os.fsync", full)
    assert bench() == 2
    assert "No space left on device" in capsys.readouterr().err
    assert len(bench.kept) == 2
    assert [path.name for path in bench.path.parent.iterdir()] == ["benchmark.json"]


def test_a_peers_python_that_is_not_there(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--peers-python", "nowhere/python") == 2
    said = capsys.readouterr().err
    assert "'--peers-python': expected the name or path of a Python, got 'nowhere/python', which cannot be run" in said
    assert bench.measured == []
    assert not bench.path.exists()


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_a_peers_python_without_one_framework(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The other is timed; that one is missing is the last thing said but the files; then it alone is tried again."""
    python = script(
        tmp_path / "python",
        f"""#!{sys.executable}
import json, sys
if sys.argv[2] == "tensorflow":
    import no_such_module
print(json.dumps({{"version": "1.2", "medians": [6.0 for _ in json.load(sys.stdin)]}}))
""",
    )
    assert bench("--peers-python", python) == 0
    *_, missing, wrote = capsys.readouterr().out.splitlines()
    assert missing == (
        f"tensorflow was not timed by {python}: ModuleNotFoundError: No module named 'no_such_module'. "
        "Mend that, and the same command times what is missing."
    )
    assert wrote.startswith("wrote ")
    found = read(bench.path)
    assert found is not None and found.environment["jax"] == "1.2"
    assert [(row["framework"], row["median"]) for row in found.peers] == [("jax", 6.0)] * 5
    script(python, python.read_text().replace("import no_such_module", "pass"))
    bench.measured = []
    assert bench("--peers-python", python) == 0
    assert "5 of 6 measurements are in" in capsys.readouterr().out
    found = read(bench.path)
    assert found is not None and [row["framework"] for row in found.peers] == ["jax"] * 5 + ["tensorflow"] * 5
    assert bench.measured == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "Exec format error"), ("#!/bin/sh\n", "it printed no figures"), ("#!/bin/sh\nexit 3\n", "exit code 3")],
)
def test_what_is_no_python_is_said(bench: Bench, tmp_path: Path, text: str, reason: str) -> None:
    python = str(script(tmp_path / "python", text))
    benchmark = Benchmark({})
    with pytest.raises(jobs.PeerError, match=f"jax was not timed by .*python: {reason}"):
        next(job for job in jobs.jobs(benchmark, True, False, python) if job.name == "jax").run()
    assert benchmark == Benchmark({})


@pytest.mark.parametrize(("arguments", "times"), [([], 1), (["--default-allocator"], 0)], ids=str)
def test_freed_memory_is_kept_unless_asked_otherwise(bench: Bench, arguments: list[str], times: int) -> None:
    assert bench(*arguments) == 0
    assert bench.memory_kept == times


def test_other_commands_keep_freed_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert steadynorm(monkeypatch, "report", str(tmp_path)) == 2
    assert bench.memory_kept == 1


def test_a_terminal_has_a_bar(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmarks, "Console", lambda: Console(force_terminal=True, width=120, _environ={}))
    assert bench() == 0
    said = capsys.readouterr().out
    assert "3/4" in said and "━" in said
    assert "3 of 4" not in said
