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
from steadynorm.kernels import numba_cpu

assert numba_cpu.moments(torch.ones(4, 3, 5)).mean.tolist() == [[1, 1, 1]]
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


def test_second_process_compiles_nothing(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    environment["XDG_CACHE_HOME"] = str(tmp_path)

    def kept() -> dict[Path, int]:
        subprocess.run([sys.executable, "-c", SCRIPT], env=environment, timeout=100, check=True)
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix in (".nbi", ".nbc")}

    first = kept()
    assert {path.suffix for path in first} == {".nbi", ".nbc"}
    assert kept() == first
