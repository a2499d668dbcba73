"""A benchmark's file: what was written is read, what is no benchmark is refused by name."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from steadynorm.bench import summary
from steadynorm.bench.jobs import jobs
from steadynorm.bench.record import Benchmark, open_benchmark, read
from steadynorm.errors import RecordError

from .rows import row

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results" / "benchmark.json"


def test_round_trip(tmp_path: Path) -> None:
    peer = {"framework": "jax", "shape": [2, 3, 4, 4], "mode": "forward", "median": None}
    network = {"depth": 18, "batch": 8, "pixels": 96, **row(4.0)}
    benchmark = Benchmark({"torch": "2.13.0"}, [row(4.0)], [network], [peer])
    (tmp_path / "b.json").write_bytes(benchmark.encode())
    assert read(tmp_path / "b.json") == benchmark


def test_the_committed_record_is_whole() -> None:
    """It is read and summed up, and the command that made it would find nothing left to measure."""
    found = read(COMMITTED)
    assert found is not None
    wanted = jobs(found, quick=False, with_networks=True, peers_python="python")
    assert len({job.name for job in wanted}) == len(wanted)
    kinds = (found.cases, found.relatives, found.networks, found.folding, found.studies)
    assert len(wanted) == sum(map(len, kinds)) + 2
    assert [job.name for job in wanted if not job.done] == []
    assert len(summary.groups(found)) > 20 and len(summary.networks(found)) == 8
    assert len(summary.relatives(found)[1]) == 7


def test_settings_must_agree_but_more_may_be_known(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    assert open_benchmark(path, {"torch": "2"}) == Benchmark({"torch": "2"})
    path.write_bytes(Benchmark({"torch": "2", "jax": "1"}).encode())
    assert open_benchmark(path, {"torch": "2"}).environment == {"torch": "2", "jax": "1"}
    message = r"other settings \(torch: '2', now '3', grid: None, now 'quick'\)\. Choose another --out, or delete"
    with pytest.raises(RecordError, match=message):
        open_benchmark(path, {"torch": "3", "grid": "quick"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot read .*Choose another --out, or delete that file"),
        ("[]", "is not a steadynorm benchmark: expected format 'steadynorm-benchmark'"),
        ('{"format": "steadynorm-study", "version": 1}', "is not a steadynorm benchmark"),
        ('{"format": "steadynorm-benchmark", "version": 99}', "has version 99, this steadynorm reads version 1"),
        ('{"format": "steadynorm-benchmark", "version": 1}', "is damaged: .*environment"),
    ],
)
def test_what_is_no_benchmark_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(RecordError, match=message):
        read(tmp_path / "b.json")


def test_a_folder_of_that_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot read"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("environment",), None, "expected an environment, got None"),
        (("cases",), 5, "not iterable"),
        (("cases", 0), "x", "expected a row of cases, got 'x'"),
        (("cases", 0, "shape"), None, "expected shape in each row of cases"),
        (("cases", 0, "megabytes"), "1", "expected megabytes in each row of cases"),
        (("cases", 0, "timings"), {}, "expected timings of steadynorm and torch, got {}"),
        (("cases", 0, "timings", "torch"), {"median": 1.0}, "missing 3 required"),
        (("cases", 0, "timings", "torch", "median"), None, "not supported between"),
        (("cases", 0, "timings", "torch", "median"), 0.0, "expected milliseconds above 0"),
        (("networks",), [{}], "expected depth in each row of networks, got {}"),
        (("peers",), [{}], "expected framework in each row of peers, got {}"),
        (("rows",), [], "unexpected keyword argument 'rows'"),
    ],
    ids=str,
)
def test_damage_is_named(tmp_path: Path, place: tuple[str | int, ...], value: object, message: str) -> None:
    document: dict[str, Any] = {"format": "steadynorm-benchmark", "version": 1, **asdict(Benchmark({}, [row(4.0)]))}
    *way, last = place
    inner: Any = document
    for step in way:
        inner = inner[step]
    inner[last] = value
    (tmp_path / "b.json").write_text(json.dumps(document))
    with pytest.raises(RecordError, match=f"is damaged: .*{message}"):
        read(tmp_path / "b.json")
