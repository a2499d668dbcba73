"""The command line as a person meets it: real processes, exit codes, one line for an error, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from steadynorm import records

from .support import command
from .support.study import one_claim, three_claims

COMMAND = [sys.executable, "-m", "steadynorm.cli"]


def steadynorm(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "90"}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )


def drawn_again(patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str | Path, cwd: Path) -> str:
    """What `steadynorm report` prints, in this process: one more takes seconds to begin."""
    patch.chdir(cwd)
    patch.setenv("COLUMNS", "90")
    capsys.readouterr()
    assert command.steadynorm(patch, "report", str(out)) == 0
    return capsys.readouterr().out


def test_study_then_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The default place, a verdict and a table, a page, pictures and numbers; then drawn again from the runs alone.

    Another study in that folder is refused, and changes nothing.
    """
    done = steadynorm("study", "--preset", "smoke", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^(supported|contradicted|undecided): test accuracy, with BN − without: [+−]", done.stdout, re.M)
    assert re.search(r"without BN +0\.\d+ ", done.stdout)
    out = tmp_path / "runs" / "cnn-smoke"
    assert {path.name for path in out.iterdir()} == {
        *("data", "evidence.json", "figures", "report.html", "runs", "study.json")
    }
    assert len(list(out.glob("runs/cnn/*.json"))) == 4
    kept = records.read(out / "study.json", records.Study).command
    assert kept == "steadynorm study cnn --preset smoke --out runs/cnn-smoke"
    for path in (out / "report.html", out / "evidence.json"):
        path.unlink()
    again = drawn_again(monkeypatch, capsys, out, tmp_path)
    assert "4 of 4 runs\n" in done.stdout
    assert done.stdout.splitlines()[-20:-1] == again.splitlines()[-20:-1]
    assert (out / "report.html").stat().st_size > 10_000
    before = {path: path.read_bytes() for path in out.rglob("*.json")}
    assert command.steadynorm(monkeypatch, "study", "--preset", "smoke", "--seeds", "3", "--out", str(out)) == 2
    assert "holds a study with other settings (4 runs, now 6)" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*.json")} == before


def test_several_studies_make_one_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, evidence in {"quick": three_claims(), "full": one_claim()}.items():
        sections = [replace(section, figures=[]) for section in evidence.sections]
        records.write(tmp_path / name / "evidence.json", replace(evidence, sections=sections))
    both = ("report", "quick", "full", "--out", "both")
    assert command.steadynorm(monkeypatch, *both, "--markdown", "both.md") == 0
    text = (tmp_path / "both.md").read_text()
    assert re.findall(r"^## (.*)$", text, re.M) == ["cnn", "cnn, digits", "norms", "learning-rate"]
    assert "[cnn, digits](#cnn-digits)" in text
    assert "\nsteadynorm report quick full --out both\n" in text
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"evidence.json"}
    assert command.steadynorm(monkeypatch, *both) == 0
    assert 'id="claim-cnn-digits"' in (tmp_path / "both" / "report.html").read_text()
    assert [path.name for path in (tmp_path / "quick").iterdir()] == ["evidence.json"]


def test_claims_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.steadynorm(monkeypatch, "study", "--list") == 0
    assert capsys.readouterr().out.startswith(
        "cnn               Does batch normalization make a small CNN learn faster and better?\n"
    )


MODELS = """
import torch

def build():
    return torch.nn.Sequential(
        torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    )

def loaders():
    x = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(x, (x.sum(1) > 0).long())
    return torch.utils.data.DataLoader(data, 16, shuffle=True), torch.utils.data.DataLoader(data, 96)
"""


def test_compare_then_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user's own network and data, from modules in the current folder, in other processes."""
    (tmp_path / "mine.py").write_text(MODELS)
    options = ("--norms", "batch,none", "--epochs", "2", "--seeds", "2", "--jobs", "2", "--out", "o")
    done = steadynorm("compare", "mine:build", "--data", "mine:loaders", *options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Is batch better than none?" in done.stdout
    again = drawn_again(monkeypatch, capsys, "o", tmp_path)
    assert again and done.stdout.endswith(again)
    assert "the user's own; runs: 4 finished, over 2 seeds" in done.stdout
    kept = records.read(tmp_path / "o" / "study.json", records.Study).command
    assert kept.startswith("steadynorm compare mine:build --data mine:loaders --norms batch,none --epochs 2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("study", "magic"), "expected claims of cnn, "),
        (("study", "--preset", "huge"), "'huge' is not one of 'smoke', 'quick', 'full'"),
        (("study", "--data", "imagenet"), "'imagenet' is not one of 'digits', 'mnist', 'fashion-mnist', 'cifar10'"),
        (("study", "--seeds", "0"), "Invalid value for '--seeds': 0 is not in the range"),
        (("study", "--threads", "-3"), "-3 is not in the range"),
        (("study", "--jobs", "0"), "Invalid value for '--jobs'"),
        (("study", "--engine", "slurm"), "'slurm' is not one of 'local', 'ray', 'dask'"),
        (("study", "--data", "mnist", "--data-dir", "empty"), "expected the files train-images-idx3-ubyte.gz"),
        (("study", "--out", "file/out"), "cannot write to file/out"),
        (("compare", "math:pi", "--data", "math:pi"), "expected at least two factories"),
        (("compare", "nowhere:x", "--data", "math:pi"), "expected a module that can be imported, got 'nowhere'"),
        (
            ("compare", "math:floor", "--data", "math:pi", "--lr", "nan"),
            "expected epochs >= 1, seeds >= 1, lr > 0",
        ),
        (("compare", "math:floor"), "Missing option '--data'"),
        (("report", "empty"), "no evidence.json in empty"),
        (("report",), "Missing argument 'DIRECTORY...'"),
        (("report", "one", "other"), "expected --out FOLDER for the report of 2 studies"),
        (("report", "one", "other", "--out", "x/../one"), "expected --out to be another folder than the studies'"),
        (("bench", "--peers-python", "nowhere"), "Invalid value for '--peers-python': expected the name or path of a"),
        (("bench", "--peers-python", "./file"), "got './file', which cannot be run. Mend it or leave it out."),
        (("bench", "--out", "file/out"), "cannot write to file/out: Not a directory. Choose another --out."),
        (("study", "--gpu"), "No such option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))  # where no data were fetched to before
    assert command.steadynorm(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("steadynorm: ")
    assert said.count("\n") == 1
    assert not [path for path in tmp_path.rglob("*.json*") if "cache" not in path.parts]


def test_bad_input_to_a_process_of_its_own(tmp_path: Path) -> None:
    done = steadynorm("train", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("steadynorm: No such command 'train'")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_interrupt_keeps_finished_runs_and_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C after the first run: it is kept, its report can be drawn, and the same command finishes the study."""
    arguments = ["study", "--preset", "smoke", "--seeds", "1", "--jobs", "1", "--out", "o"]
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a background job ignores it
    program = [sys.executable, "-c", f"{heed}; from steadynorm.cli import main; main()", *arguments]
    process = subprocess.Popen(program, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not list((tmp_path / "o").glob("runs/*/*.json")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == (
        "steadynorm: interrupted; 1 of 2 runs are finished and kept in o. The same command goes on; "
        "`steadynorm report o` draws what there is.\n"
    )
    drawn_again(monkeypatch, capsys, "o", tmp_path)
    evidence = records.read(tmp_path / "o" / "evidence.json", records.Evidence)
    assert evidence.sections[0].runs == {"finished": 1, "diverged": 0, "crashed": 0, "missing": 1}
    (kept,) = (tmp_path / "o").glob("runs/*/*.json")
    written = kept.stat().st_mtime_ns
    assert steadynorm(*arguments, cwd=tmp_path).returncode == 0
    assert kept.stat().st_mtime_ns == written
    assert len(list((tmp_path / "o").glob("runs/*/*.json"))) == 2


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
