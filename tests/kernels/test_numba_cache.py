"""Where compiled kernels are kept, and that a second process finds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from steadynorm.kernels.numba_cpu.compiling import cache_folder

pytestmark = pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="XDG_CACHE_HOME is of other systems")

SCRIPT = """
import torch
from steadynorm.kernels import Apply, numba_cpu

torch.manual_seed(0)
dy, x = torch.randn(2, 4, 16, 121)
sums = numba_cpu.reduce_grad(dy, x, torch.zeros(16), torch.ones(16), Apply(None, None, 0.0, activation="relu"))
assert torch.allclose(sums[0], torch.where(x > 0, dy, 0).double().sum((0, 2)), atol=1e-4)
print(torch.stack(sums).tolist())
"""


def test_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In XDG_CACHE_HOME, else in ~/.cache; the rest of its path is of the source alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = cache_folder()
    assert folder.parent == tmp_path / "steadynorm"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cache_folder() == folder
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path.home() / ".cache" / "steadynorm" / folder.name


def test_second_process_compiles_nothing_and_gives_the_same_bits(tmp_path: Path) -> None:
    """Whether a kernel was compiled by this process or an earlier one: its sums are rounded alike."""
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(tmp_path)

    def run() -> tuple[str, dict[Path, int]]:
        command = [sys.executable, "-c", SCRIPT]
        done = subprocess.run(command, env=environment, timeout=500, check=True, capture_output=True, text=True)
        files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix in (".nbi", ".nbc")}
        return done.stdout, files

    printed, kept = run()
    assert {path.suffix for path in kept} == {".nbi", ".nbc"}
    assert run() == (printed, kept)
