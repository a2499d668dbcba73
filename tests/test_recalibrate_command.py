"""`steadynorm recalibrate`: a checkpoint in, a checkpoint with the statistics of all data out.

In this process, as a new one with a cache of its own would compile the kernels anew for each command.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import steadynorm as sn
from steadynorm import cli

SOURCE = """
import torch
import steadynorm as sn

def build():
    return torch.nn.Sequential(torch.nn.Linear(3, 4), sn.BatchNorm1d(4), torch.nn.Tanh(), torch.nn.BatchNorm1d(4))

def loader():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(2)) * 3 + 1
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, x), batch_size=16)

batches = [batch for batch, _ in loader()]

class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(torch.cat(batches))

def stream():
    return torch.utils.data.DataLoader(Stream(), batch_size=16)

class Heads(torch.nn.Sequential):
    def forward(self, x):
        return self[1](self[0](x))

def build_heads():
    return Heads(*build())

def once():
    return iter(batches)

def broken():
    yield batches[0]
    yield batches[1] * float("inf")
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "theirs.py").write_text(SOURCE)
    names: dict = {}
    exec(SOURCE, names)
    torch.manual_seed(0)
    torch.save({"state_dict": names["build"]().state_dict(), "epoch": 3}, tmp_path / "in.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setattr(cli.runtime, "keep_freed_memory", lambda: None)  # which would outlast the test
    return tmp_path


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    def command(*more: str, data: str, factory: str = "theirs:build") -> Done:
        arguments = (factory, "--checkpoint", "in.pt", "--data", data, "--out", "new/out.pt", *more)
        monkeypatch.setattr(sys, "argv", ["steadynorm", "recalibrate", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return Done(code, said.out, said.err)

    yield command
    sys.modules.pop("theirs", None)


@pytest.mark.parametrize(
    ("more", "data", "settings"),
    [
        ((), "theirs:loader", {}),
        (("--sequential", "--batches", "3"), "theirs:batches", {"sequential": True, "batches": 3}),
        (("--estimator", "paper"), "theirs:once", {"estimator": "paper"}),
        ((), "theirs:stream", {}),
    ],
    ids=["plain", "sequential", "paper", "stream"],
)
def test_as_in_python(folder: Path, run: Any, more: tuple[str, ...], data: str, settings: dict) -> None:
    done = run(*more, data=data)
    assert (done.code, done.err) == (0, "")
    names: dict = {}
    exec(SOURCE, names)
    model = names["build"]()
    model.load_state_dict(torch.load(folder / "in.pt", weights_only=True)["state_dict"])
    shifts = sn.recalibrate_(model, names["loader"](), **settings)
    lines = done.out.splitlines()
    assert lines[0].split() == "layer values largest shift (sd) new var / old var".split()
    assert [line.split()[0] for line in lines[1:3]] == list(shifts) == ["1", "3"]
    assert lines[3:] == [f"{settings.get('batches', 4)} batches", "wrote new/out.pt"]
    written = torch.load(folder / "new" / "out.pt", weights_only=True)
    assert list(written) == list(model.state_dict())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(written[name], value)


def test_layers_that_no_batch_reaches(folder: Path, run: Any) -> None:
    done = run(data="theirs:batches", factory="theirs:build_heads")
    assert done.code == 2
    assert "the data never reached '3'" in done.err
    done = run("--unreached", "keep", data="theirs:batches", factory="theirs:build_heads")
    assert (done.code, done.err) == (0, "")
    written = torch.load(folder / "new" / "out.pt", weights_only=True)
    assert torch.equal(written["3.running_mean"], torch.zeros(4))
    assert written["1.num_batches_tracked"] == 4


@pytest.mark.parametrize(
    ("more", "data", "message"),
    [
        ((), "theirs:absent", "recalibrate: theirs has no 'absent'"),
        ((), "theirs:build", "expected batches that are tensors, tuples"),
        (("--sequential",), "theirs:once", "recalibrate: expected data that can be read again and again"),
        ((), "theirs:broken", "recalibrate_: expected finite data, got a mean or variance at '1'"),
        (("--batches", "0"), "theirs:loader", "Invalid value for '--batches'"),
        (("--estimator", "mean"), "theirs:loader", "'mean' is not one of 'pooled', 'paper'"),
        (("--checkpoint", "theirs.py"), "theirs:loader", "expected weights in theirs.py"),
        (("--out", "theirs.py/out.pt"), "theirs:loader", "cannot write to theirs.py"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    folder: Path, run: Any, more: tuple[str, ...], data: str, message: str
) -> None:
    done = run(*more, data=data)
    assert done.code == 2
    assert message in done.err
    assert done.err.startswith("steadynorm: ")
    assert done.err.count("\n") == 1
    assert not list(folder.rglob("out.pt*"))
