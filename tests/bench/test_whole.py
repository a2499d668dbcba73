"""Everything `steadynorm bench` does, end to end, on shapes that take no time: measured, kept, shown, documented."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from steadynorm.bench import cold, exactness, folding, fresh, goals, jobs, networks, relatives, small, studies, timing
from steadynorm.bench.blocks import BLOCKS, NOTHING
from steadynorm.bench.cases import FIRST, LAST, PLAIN, RELU, TRAINING, Case
from steadynorm.bench.record import read
from steadynorm.bench.timing import in_batches

from ..support.command import steadynorm

KEYS: dict[Any, list[dict[str, Any]]] = {
    cold: [{"shape": [2, 3, 4, 4], "order": order, "epilogue": RELU, "count": 2} for order in (FIRST, LAST)],
    small: [{"shape": [4, 3], "epilogue": epilogue, "mode": TRAINING} for epilogue in (PLAIN, RELU)],
    fresh: [{"what": "first step", "processes": 1}],
    exactness: [{"shape": [4, 3, 5, 5], "order": LAST, "mean": 1e4}],
    relatives: [{"shape": [4, 3, 5, 5], "order": FIRST}],
    folding: [{"network": "ResNet-18", "batch": 1, "pixels": 32, "order": FIRST}],
    studies: [{"what": studies.CNN, "size": 10}],
}
CASES = [Case((4, 3, 5, 5), order, "float32", RELU, TRAINING) for order in (FIRST, LAST)]
SHOWN = [
    *("In a network: caches cold, summed over ResNet-50", "In a network, layer by layer", "Small tensors, a call"),
    *("One layer, caches warm", "Fresh processes", "Whole steps", "Largest errors, in training"),
    *("times as long as the plain layer", "Studies, milliseconds", "Inference, times as fast", "Goals"),
]


def test_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One run has rows of every kind, in the order of what matters; then every table and every block has figures."""
    for kind, keys in KEYS.items():
        monkeypatch.setattr(kind, "keys", lambda quick, keys=keys: keys)
    monkeypatch.setattr(jobs, "grid", lambda quick: CASES)
    network = {"depth": 18, "batch": 2, "pixels": 32, "order": FIRST, "mode": "training"}
    monkeypatch.setattr(jobs, "_networks", lambda quick: [network])
    answer = {"seconds": 0.2, "resident_megabytes": 250.0, "peak_megabytes": 500.0}
    for asking in (networks, fresh):
        monkeypatch.setattr(asking, "ask", lambda request: answer)
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(jobs, "in_turns", lambda steps, seconds=0.0: timing.in_turns(steps, 0.0))
    monkeypatch.setattr(small, "in_batches", partial(in_batches, milliseconds=0.01, rounds=2))
    for name, value in (("FLUSHED", 1024), ("WARM", 1), ("ROUNDS", 2), ("BIG", 0.0)):
        monkeypatch.setattr(cold, name, value)
    monkeypatch.setattr(jobs.installing, "measure", lambda source: [{"what": "pip install", "seconds": 4.5}])
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.setenv("COLUMNS", "200")
    command = ["bench", "--quick", "--out", str(tmp_path / "o")]
    assert steadynorm(monkeypatch, *command, "--install-from", str(tmp_path)) == 0
    said = capsys.readouterr().out
    assert [title for title in SHOWN if title not in said] == []
    found = read(tmp_path / "o" / "benchmark.json")
    assert found is not None
    kinds = ("cold", "small", "cases", "fresh", "networks", "exactness", "relatives", "folding", "studies", "install")
    assert [len(getattr(found, kind)) for kind in kinds] == [4, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    places = [
        said.index(f": {name}") for name in ("(2, 3, 4, 4)", "(4, 3), plain", "(4, 3, 5, 5)", "first step", "ResNet")
    ]
    assert places == sorted(places)
    page = tmp_path / "page.md"
    marked = [name for name in BLOCKS if name not in ("one-layer", "frameworks", "memory")]
    page.write_text("".join(f"<!-- bench: {name} -->\n<!-- /bench -->\n" for name in marked))
    assert steadynorm(monkeypatch, *command, "--markdown", str(page), "--figures", str(tmp_path / "f")) == 0
    assert NOTHING not in page.read_text(encoding="utf-8")
    assert len(goals.table(found)) >= 5


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_source_that_is_none(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    assert steadynorm(monkeypatch, "bench", "--install-from", folder) == 2
    assert (
        f"expected a folder with a pyproject.toml, as steadynorm's source has, got '{folder}'"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "runs").exists()
