"""`steadynorm fold` as a person meets it: files, the table, one line for an error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import steadynorm as sn

from ..support.foldable import UNet, randomised

SOURCE = """
import torch
from torch import nn

def build():
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Tanh(), nn.BatchNorm2d(2)
    return nn.Sequential(*layers)

def example():
    return (torch.randn(2, 3, 8, 8),)
"""


def run(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "steadynorm.cli", "fold", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With a module and a checkpoint of its model."""
    (tmp_path / "their_nets.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    import their_nets  # type: ignore[import-not-found]

    torch.manual_seed(0)
    torch.save(randomised(their_nets.build()).state_dict(), tmp_path / "in.pt")
    yield tmp_path
    del sys.modules["their_nets"]


def test_folds_a_checkpoint(folder: Path) -> None:
    """The new file loads as the card says, and computes what the model did."""
    done = run(folder, "their_nets:build", "--checkpoint", "in.pt", "--out", "out.pt", "--example", "1,3,16,16")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("1 of 2 norms folded; largest error of the output ")
    assert "Conv2d → BatchNorm2d" in done.stdout
    assert "it comes after '4' (Tanh)" in done.stdout
    assert done.stdout.endswith("wrote out.pt\n")
    import their_nets  # type: ignore[import-not-found]

    original = their_nets.build().eval()
    original.load_state_dict(torch.load(folder / "in.pt", weights_only=True))
    model = sn.fold(their_nets.build().eval(), torch.randn(1, 3, 16, 16)).model
    model.load_state_dict(torch.load(folder / "out.pt", weights_only=True))
    x = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(model(x), original(x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected either --example or --example-inputs, got none"),
        (["--example", "1,3,8,8", "--example-inputs", "their_nets:example"], "got both"),
        (["--example", "1,3,x"], "expected a shape such as 1,3,224,224 for --example, got '1,3,x'"),
        (["--example", "1,5,8,8"], "expected example_inputs that the model takes, got a tensor (1, 5, 8, 8)"),
        (["--example-inputs", "their_nets:nothing"], "their_nets has no 'nothing'"),
    ],
)
def test_bad_input(folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    """One line, and nothing written; in this process, to be quick."""
    from click.testing import CliRunner

    from steadynorm.cli import cli

    monkeypatch.chdir(folder)
    done = CliRunner().invoke(cli, ["fold", "their_nets:build", "--checkpoint", "in.pt", "--out", "o.pt", *arguments])
    assert message in str(done.exception)
    assert isinstance(done.exception, sn.SteadynormError)
    assert not (folder / "o.pt").exists()


def test_another_model_s_checkpoint(folder: Path) -> None:
    torch.save(UNet().state_dict(), folder / "other.pt")
    done = run(folder, "their_nets:build", "--checkpoint", "other.pt", "--out", "o.pt", "--example", "1,3,8,8")
    assert done.returncode == 2
    assert "steadynorm fold: the weights in other.pt are of another model" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (folder / "o.pt").exists()


def test_example_inputs_by_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steadynorm.surgery.folding.command import folded

    monkeypatch.chdir(folder)
    content, found = folded("their_nets:build", Path("in.pt"), None, "their_nets:example")
    assert len(found.pairs) == 1
    assert content[:2] == b"PK"
