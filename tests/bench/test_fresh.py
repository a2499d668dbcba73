"""Fresh processes: that they measure what is asked, and what is said when they cannot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from steadynorm.bench import fresh, processes
from steadynorm.bench.processes import NotMeasuredError, ask

from .rows import fresh_row


def test_the_first_step_of_both(monkeypatch: pytest.MonkeyPatch) -> None:
    (row,) = fresh.measure("first step", 1)
    assert {name: timing["rounds"] for name, timing in row["timings"].items()} == {"steadynorm": 1, "torch": 1}
    if sys.platform == "linux":
        assert all(0 < row["resident_megabytes"][name] <= row["peak_megabytes"][name] for name in row["timings"])
    assert [len(line) for line in fresh.table([row])] == [len(fresh.HEADER)] * (3 if sys.platform == "linux" else 1)


def test_processes_take_turns_after_one_that_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        asked.append(request["variant"])
        return {"seconds": 0.1 * len(asked), "resident_megabytes": None, "peak_megabytes": None}

    monkeypatch.setattr(fresh, "ask", answer)
    (row,) = fresh.measure("first step", 2)
    assert asked == ["steadynorm", *["steadynorm", "torch"] * 2]
    assert row["timings"]["torch"]["median"] == pytest.approx(400)
    assert row["resident_megabytes"] == {"steadynorm": None, "torch": None}
    assert fresh.beyond([row]) == (pytest.approx(-0.1), None)
    assert len(fresh.table([row])) == 1


def test_beyond_torch() -> None:
    assert fresh.beyond([fresh_row()]) == (pytest.approx(0.2), 8.0)
    assert fresh.beyond([]) is None
    assert fresh.table([fresh_row()]) == [
        ("import, build and first step, s", "0.20", "0.40", "+0.20"),
        ("memory after it, MB", "250.0", "258.0", "+8.0"),
        ("at most, MB", "250.0", "258.0", "+8.0"),
    ]


def test_torch_s_process_knows_nothing_of_steadynorm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It runs, and ours does not, where steadynorm cannot be imported."""
    (tmp_path / "steadynorm.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert ask({"what": "first step", "variant": "torch"})["seconds"] > 0
    with pytest.raises(
        NotMeasuredError, match=r"first step of steadynorm was not measured in .*: ImportError: not here"
    ):
        ask({"what": "first step", "variant": "steadynorm"})


@pytest.mark.parametrize(
    ("text", "reason"),
    [("", "it printed no figures"), ("raise SystemExit(3)", "exit code 3"), ("1 / 0", "ZeroDivisionError")],
)
def test_a_process_that_fails_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str) -> None:
    (tmp_path / "child.py").write_text(text)
    monkeypatch.setattr(processes, "_CHILD", tmp_path / "child.py")
    message = (
        f"peak of torch was not measured in a fresh process of .*: {reason}.*the same command measures what is missing"
    )
    with pytest.raises(NotMeasuredError, match=message):
        ask({"what": "peak", "variant": "torch"})
