"""The command line as a person meets it: real processes, exit codes, one line for an error, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from steadynorm import cli, records

COMMAND = [sys.executable, "-m", "steadynorm.cli"]


def steadynorm(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "COLUMNS": "90",
        "XDG_CACHE_HOME": str(cwd / "cache"),
        "https_proxy": "http://127.0.0.1:9",
    }
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def test_study_then_report(tmp_path: Path) -> None:
    """The default place, a table with both networks, a page and a picture; then drawn again from records alone."""
    done = steadynorm("study", "--epochs", "1", "--seeds", "1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"without BN, seed 0: test accuracy 0\.\d{4}, trained in \d+\.\d s", done.stdout)
    assert re.search(r"test accuracy +│ +\d\d\.\d\d% │ +\d\d\.\d\d%", done.stdout)
    out = tmp_path / "runs" / "cnn-digits"
    assert {path.name for path in out.iterdir()} == {"records.json", "report.html", "curves.png"}
    assert len(records.read(out).runs) == 2
    (out / "report.html").unlink()
    again = steadynorm("report", out, cwd=tmp_path)
    assert again.returncode == 0
    assert "test accuracy" in again.stdout
    assert (out / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("study", "--data", "imagenet"), "'imagenet' is not one of 'digits', 'mnist', 'fashion-mnist', 'cifar10'"),
        (("study", "--epochs", "0"), "Invalid value for '--epochs': 0 is not in the range"),
        (("study", "--epochs", "-3"), "-3 is not in the range"),
        (("study", "--batch-size", "1"), "Invalid value for '--batch-size'"),
        (("study", "--lr", "nan"), "nan is not a finite number"),
        (("study", "--lr", "0"), "Invalid value for '--lr'"),
        (("study", "--optimizer", "lion"), "'lion' is not one of 'adam', 'adamw', 'sgd'"),
        (("study", "--seeds", "0"), "Invalid value for '--seeds'"),
        (("study", "--data", "mnist", "--data-dir", "empty"), "expected the files train-images-idx3-ubyte.gz"),
        (("study", "--out", "file/out"), "cannot write to file/out"),
        (("report", "empty"), "no records.json in empty"),
        (("bench", "--peers-python", "nowhere"), "Invalid value for '--peers-python': expected the name or path of a"),
        (("bench", "--peers-python", "./file"), "got './file', which cannot be run. Mend it or leave it out."),
        (("bench", "--out", "file/out"), "cannot write to file/out: Not a directory. Choose another --out."),
        (("train",), "No such command 'train'"),
        (("study", "--gpu"), "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "file").write_text("")
    done = steadynorm(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("steadynorm: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("records.json*"))


def test_records_of_another_study_are_kept(tmp_path: Path) -> None:
    assert steadynorm("study", "--epochs", "1", "--seeds", "1", "--out", "o", cwd=tmp_path).returncode == 0
    before = (tmp_path / "o" / "records.json").read_bytes()
    done = steadynorm("study", "--epochs", "2", "--seeds", "1", "--out", "o", cwd=tmp_path)
    assert done.returncode == 2
    assert "holds a study with other settings (epochs: 1, now 2)" in done.stderr
    assert (tmp_path / "o" / "records.json").read_bytes() == before


def test_interrupt_keeps_finished_runs_and_says_how_to_go_on(tmp_path: Path) -> None:
    """Ctrl-C in the second run: the first is kept, its report can be drawn, and the same command finishes the study."""
    arguments = ["study", "--epochs", "3", "--seeds", "1", "--out", "o"]
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a background job ignores it
    command = [sys.executable, "-c", f"{heed}; from steadynorm.cli import main; main()", *arguments]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (records.exist(tmp_path / "o") and records.read(tmp_path / "o").runs):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == (
        "steadynorm: interrupted; 1 of 2 runs are finished and kept in o. The same command goes on; "
        "`steadynorm report o` draws what there is.\n"
    )
    assert steadynorm("report", "o", cwd=tmp_path).returncode == 0
    assert "1 of 2 runs are not finished" in (tmp_path / "o" / "report.html").read_text()
    done = steadynorm(*arguments, cwd=tmp_path)
    assert done.returncode == 0
    assert "without BN, seed 0" not in done.stdout
    assert len(records.read(tmp_path / "o").runs) == 2


def test_no_command_shows_help(tmp_path: Path) -> None:
    done = steadynorm(cwd=tmp_path)
    assert done.returncode == 0
    assert "Usage: steadynorm" in done.stdout


def test_without_the_extra_the_error_names_it(tmp_path: Path) -> None:
    """A core installation: click cannot be imported."""
    (tmp_path / "click.py").write_text("raise ImportError('No module named click', name='click')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([*COMMAND, "study"], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr == (
        "steadynorm: the command line needs optional packages (click): pip install 'steadynorm[study]'\n"
    )


def test_interrupt_before_anything_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.studies.cnn, "run", interrupt)
    monkeypatch.setattr(sys, "argv", ["steadynorm", "study", "--out", str(tmp_path / "o")])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "steadynorm: interrupted; no run was begun\n"
