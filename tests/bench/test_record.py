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

from .rows import cold_rows, exactness_row, fresh_row, row, small_row

COMMITTED = Path(__file__).parents[2] / "benchmarks" / "results" / "benchmark.json"


def test_round_trip(tmp_path: Path) -> None:
    peer = {"framework": "jax", "shape": [2, 3, 4, 4], "mode": "forward", "median": None}
    network = {"depth": 18, "batch": 8, "pixels": 96, **row(4.0)}
    benchmark = Benchmark(
        {"torch": "2.13.0"},
        **{"cold": cold_rows(1.0, 2.0), "small": [small_row(0.2)], "cases": [row(4.0)], "fresh": [fresh_row()]},
        **{"exactness": [exactness_row()], "networks": [network], "peers": [peer]},
        install=[{"what": "pip install", "seconds": 4.5}],
    )
    (tmp_path / "b.json").write_bytes(benchmark.encode())
    assert read(tmp_path / "b.json") == benchmark


def test_a_row_is_a_line_and_numbers_are_short() -> None:
    """So that a record is small and a change of it can be read."""
    benchmark = Benchmark({"torch": "2"}, cases=[row(1.23456789), row(123456789.0), row(5.0)])
    lines = benchmark.encode().decode().splitlines()
    begin = lines.index('"cases": [')
    assert [json.loads(line.rstrip(","))["timings"]["torch"]["median"] for line in lines[begin + 1 : begin + 4]] == [
        *(1.23457, 123457000.0, 5.0)
    ]
    assert lines[begin + 4] == "],"
    again = Benchmark(
        **{name: value for name, value in json.loads("\n".join(lines)).items() if name in asdict(benchmark)}
    )
    assert again.encode() == benchmark.encode()


def test_the_committed_record_is_whole() -> None:
    """It is read and summed up; of the kinds it has, the command that made it would find nothing left to measure."""
    found = read(COMMITTED)
    assert found is not None
    wanted = jobs(found, quick=False, with_networks=True, peers_python="python", source=Path())
    assert len({job.name for job in wanted}) == len(wanted)
    assert [job.name for job in wanted if job.rows and not job.done] == []
    assert len(summary.groups(found)) > 20 and len(summary.networks(found)) == 8
    assert len(summary.relatives(found)[1]) == 7


def test_the_committed_record_has_every_kind() -> None:
    found = read(COMMITTED)
    assert found is not None
    wanted = jobs(found, quick=False, with_networks=True, peers_python=None, source=Path())
    assert {job.name for job in wanted if not job.done} == set()


def test_the_committed_record_is_small() -> None:
    """A row a line."""
    assert len(COMMITTED.read_text(encoding="utf-8").splitlines()) < 1000


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
        ('{"format": "steadynorm-benchmark", "version": 99}', "has version 99, this steadynorm reads version 2"),
        ('{"format": "steadynorm-benchmark", "version": 1}', "has version 1, this steadynorm reads version 2"),
        ('{"format": "steadynorm-benchmark", "version": 2}', "is damaged: .*environment"),
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
        (("cases", 0, "timings", "torch"), {"median": 1.0}, "missing 4 required"),
        (("cases", 0, "timings", "torch", "median"), None, "not supported between"),
        (("cases", 0, "timings", "torch", "median"), 0.0, "expected milliseconds above 0"),
        (("networks",), [{}], "expected depth in each row of networks, got {}"),
        (("peers",), [{}], "expected framework in each row of peers, got {}"),
        (("cold",), [{}], "expected shape in each row of cold, got {}"),
        (("small",), [{"shape": []}], "expected epilogue in each row of small"),
        (("fresh",), [{"what": 3}], "expected what in each row of fresh"),
        (("exactness",), [{}], "expected shape in each row of exactness"),
        (("install",), [{"what": "pip install", "seconds": "4"}], "expected seconds in each row of install"),
        (("rows",), [], "unexpected keyword argument 'rows'"),
    ],
    ids=str,
)
def test_damage_is_named(tmp_path: Path, place: tuple[str | int, ...], value: object, message: str) -> None:
    document: dict[str, Any] = {
        "format": "steadynorm-benchmark",
        "version": 2,
        **asdict(Benchmark({}, cases=[row(4.0)])),
    }
    *way, last = place
    inner: Any = document
    for step in way:
        inner = inner[step]
    inner[last] = value
    (tmp_path / "b.json").write_text(json.dumps(document))
    with pytest.raises(RecordError, match=f"is damaged: .*{message}"):
        read(tmp_path / "b.json")
