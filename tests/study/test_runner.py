"""A grid of runs: the same records whatever computes them and however often it is killed; a bad run stops no other."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from steadynorm import records
from steadynorm.errors import RecordError
from steadynorm.records import CRASHED, FINISHED, Evidence, Run, place
from steadynorm.study import runner, study
from steadynorm.study.claim import Claim, Outcome
from steadynorm.study.runner import Engine, _isolate, _Task, run_grid
from steadynorm.study.tools import Keeper

from ..support.claims import claim, records_of, with_a_real_one

ALONE = Engine(jobs=1)


def ran(given: Claim, directory: Path, engine: Engine = ALONE) -> Evidence:
    return study.run({"toy": given}, given.cells("own"), directory, preset="own", command="c", engine=engine)


def ran_with_a_real_one(directory: Path, engine: Engine = ALONE, **toy: Any) -> Evidence:
    claims, cells = with_a_real_one(**toy)
    return study.run(claims, cells, directory, preset="own", command="c", engine=engine)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("alone")
    ran_with_a_real_one(directory)
    found = records_of(directory)
    assert len(found) == 6
    assert len(set(found.values())) == 6
    return found


@pytest.mark.parametrize(
    "engine",
    [Engine(jobs=2), Engine("ray", jobs=2), pytest.param(Engine("dask", jobs=2), marks=pytest.mark.slow)],
    ids=lambda e: e.name,
)
@pytest.mark.filterwarnings("default")  # clusters' own warnings are theirs
def test_engines_give_the_same_records(engine: Engine, tmp_path: Path, expected: dict[str, bytes]) -> None:
    if engine.name == "ray":
        pytest.importorskip("ray")
    ran_with_a_real_one(tmp_path, engine)
    assert records_of(tmp_path) == expected


def test_threads_are_the_runs_own(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    given = claim(seeds=1)
    ran(given, tmp_path, Engine(jobs=1, threads=2))
    assert torch.get_num_threads() == before
    run = records.read(place(tmp_path, given.cells("own")[0]), Run)
    assert run.values["threads"] == 2


def test_finished_runs_are_not_repeated(tmp_path: Path, expected: dict[str, bytes]) -> None:
    ran_with_a_real_one(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*.json")}
    victim = next(iter(times))
    victim.unlink()
    ran_with_a_real_one(tmp_path)
    assert records_of(tmp_path) == expected
    assert [path for path, at in times.items() if path.stat().st_mtime_ns != at] == [victim]
    assert {path.suffix for path in victim.parent.iterdir()} == {".json"}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_raises_is_recorded_and_stops_no_other(tmp_path: Path, jobs: int) -> None:
    given = claim("raises", "plain", seeds=1)
    evidence = ran(given, tmp_path, Engine(jobs=jobs))
    bad, good = (records.read(place(tmp_path, cell), Run) for cell in given.cells("own"))
    assert (bad.status, good.status) == (CRASHED, FINISHED)
    assert bad.message.startswith("ArithmeticError: as asked (claims.py, line ")
    assert evidence.sections[0].runs == {"finished": 1, "diverged": 0, "crashed": 1, "missing": 0}
    shown = evidence.sections[0].tables[-1]
    assert (shown.title, shown.rows) == ("Crashed runs", [["toy: raises, seed 0", bad.message]])


def test_a_run_whose_process_dies_is_recorded_and_stops_no_other(tmp_path: Path) -> None:
    given = claim("dies", "plain", "again", seeds=2)
    ran(given, tmp_path, Engine(jobs=2))
    found = {cell.label: records.read(place(tmp_path, cell), Run) for cell in given.cells("own")}
    died = {label for label, run in found.items() if run.status == CRASHED}
    assert died == {"toy: dies, seed 0", "toy: dies, seed 1"}
    assert "its process died twice" in found["toy: dies, seed 0"].message


def test_one_that_was_only_in_progress_when_another_died_is_computed_alone_and_the_rest_together(
    tmp_path: Path,
) -> None:
    given = claim("plain", "again", "more", seeds=1)
    tasks = [_Task(given, cell, tmp_path, None, Engine(jobs=2)) for cell in given.cells("own")]
    tasks[0].progress.parent.mkdir(parents=True)
    tasks[0].progress.touch()
    _isolate(tasks)
    assert [records.read(place(tmp_path, task.cell), Run).status for task in tasks] == [FINISHED] * 3


@pytest.mark.parametrize("engine", ["ray", pytest.param("dask", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("default")
def test_a_clusters_worker_that_dies_ends_its_run_and_no_other(engine: str, tmp_path: Path) -> None:
    pytest.importorskip(engine)
    given = claim("dies", "plain", seeds=1)
    evidence = ran(given, tmp_path, Engine(engine, jobs=2))
    assert evidence.sections[0].runs == {"finished": 1, "diverged": 0, "crashed": 1, "missing": 0}
    often = {"ray": "twice", "dask": "several times"}[engine]
    assert f"its process died {often}, perhaps for want of memory" in str(evidence.sections[0].tables[-1].rows)


@pytest.mark.filterwarnings("default")
def test_a_cluster_tells_of_a_full_disk(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    given = claim(seeds=1)
    (tmp_path / "runs").write_text("")
    with pytest.raises(RecordError, match="cannot write to") as info:
        run_grid({"toy": given}, given.cells("own"), tmp_path, None, Engine("ray", jobs=1))
    assert "ray::" not in str(info.value)


@pytest.mark.filterwarnings("default")
def test_a_cluster_elsewhere_writes_into_the_folder_of_the_study(tmp_path: Path, monkeypatch: Any) -> None:
    """Its workers have a working directory of their own, and the study's folder is a relative path."""
    from dask.distributed import LocalCluster

    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    monkeypatch.chdir(tmp_path / "theirs")
    with LocalCluster(n_workers=1, threads_per_worker=1) as cluster:
        monkeypatch.chdir(tmp_path / "ours")
        evidence = ran(claim(seeds=1), Path("out"), Engine("dask", address=str(cluster.scheduler_address)))  # type: ignore[attr-defined]
    assert evidence.sections[0].runs["finished"] == 2
    assert len(records_of(tmp_path / "ours" / "out")) == 2


def test_runs_that_left_no_record_are_an_error(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(runner, "_by_processes", lambda tasks, engine: None)
    with pytest.raises(RecordError, match=r"4 of 4 runs left no record in .*\. A cluster's machines must share"):
        ran(claim(), tmp_path)


def test_what_is_not_finite_does_not_stop_the_study(tmp_path: Path) -> None:
    given = replace(claim(seeds=1), run=lambda cell, tools: Outcome({"loss": float("nan")}))
    ran(given, tmp_path)
    assert records.read(place(tmp_path, given.cells("own")[0]), Run).values == {"loss": None}


def test_another_study_in_the_folder_is_refused_and_kept(tmp_path: Path) -> None:
    ran(claim(), tmp_path)
    before = records_of(tmp_path)
    for given, message in [
        (claim(steps=4), r"\(steps: 3, now 4\)"),
        (claim(seeds=3), r"\(4 runs, now 6\)"),
        (claim("plain", "other"), r"\(kind: 'again', now 'other'\)"),
    ]:
        with pytest.raises(RecordError, match=message + r"\. Choose another --out"):
            ran(given, tmp_path)
    with pytest.raises(RecordError, match=r"threads: '1', now '2'"):
        ran(claim(), tmp_path, Engine(jobs=1, threads=2))
    assert records_of(tmp_path) == before


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match=r"cannot write to .*file.*\. Choose another --out"):
        ran(claim(), tmp_path / "file" / "out")


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_full_disk_ends_the_study_and_is_no_crash(tmp_path: Path, jobs: int) -> None:
    """The folder of the runs is a file: the study's own record could be written, no run's can."""
    given = claim()
    study._open(tmp_path, records.Study("own", given.cells("own"), {}, "c", {}))
    (tmp_path / "runs").write_text("")
    with pytest.raises(RecordError, match="cannot write to"):
        run_grid({"toy": given}, given.cells("own"), tmp_path, None, Engine(jobs=jobs))
    assert (tmp_path / "runs").read_text() == ""


PROGRAM = """
import sys
from pathlib import Path
from steadynorm.study import study
from steadynorm.study.runner import Engine
from tests.support.claims import with_a_real_one
if __name__ == "__main__":
    claims, cells = with_a_real_one(steps=40, pause=0.02)
    study.run(claims, cells, Path(sys.argv[1]), preset="own", command="c", engine=Engine(jobs=2))
"""


def test_killed_three_times_and_resumed(tmp_path: Path) -> None:
    """kill -9 of all its processes at random moments; the records are those of an undisturbed study, bit for bit."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    out = tmp_path / "killed"
    command = [sys.executable, str(program), str(out)]
    places = {"PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(records.__file__).parents[2]}", "PATH": "/usr/bin:/bin"}
    moments, left = random.Random(0), []
    for _ in range(3):
        process = subprocess.Popen(command, env=places, start_new_session=True, stderr=subprocess.DEVNULL)
        checkpoints = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*.pt")}
        deadline = time.monotonic() + 60
        while {path: path.stat().st_mtime_ns for path in out.glob("runs/*/*.pt")} == checkpoints:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(moments.uniform(0.05, 0.4))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        left.append(len(list(out.glob("runs/*/*.pt"))))
    assert any(left), "no run was killed while it was in progress"
    assert subprocess.run(command, env=places, timeout=120).returncode == 0
    ran_with_a_real_one(tmp_path / "whole", steps=40, pause=0.02)
    assert records_of(out) == records_of(tmp_path / "whole")


def test_a_damaged_checkpoint_is_begun_anew(tmp_path: Path, expected: dict[str, bytes]) -> None:
    cells = claim().cells("own")
    path = place(tmp_path, cells[0], "pt")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a checkpo")
    ran(claim(), tmp_path)
    assert records_of(tmp_path).items() <= expected.items()
    assert not path.exists()


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[float] = []
    given = claim(seeds=1, steps=80, pause=0.02)
    run_grid({"toy": given}, given.cells("own"), tmp_path, None, ALONE, told.append)
    assert told == sorted(told)
    assert told[-1] == 2
    assert any(0 < share < 2 and share != 1 for share in told)


def test_a_keeper_without_a_place_keeps_nothing() -> None:
    keeper = Keeper(None, 0)
    keeper.offer(1, 2, lambda: pytest.fail("asked for a state"))
    assert keeper.restore() is None


@pytest.mark.filterwarnings("default")  # TensorBoard's own warnings are its own
def test_event_files_hold_every_figure(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    given = claim(seeds=1)
    ran(given, tmp_path, Engine(jobs=1, tensorboard=True))
    cell = given.cells("own")[0]
    run = records.read(place(tmp_path, cell), Run)
    found = EventAccumulator(str(tmp_path / "tensorboard" / "toy" / cell.key)).Reload()
    events = found.Scalars("loss")
    assert [event.step for event in events] == run.series["loss"].x
    assert [event.value for event in events] == pytest.approx(run.series["loss"].y, rel=1e-6)
    assert found.Scalars("final/loss")[0].value == pytest.approx(run.values["loss"], rel=1e-6)
