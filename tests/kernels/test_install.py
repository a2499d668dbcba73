"""Installing without a C compiler: it succeeds, torch's own operators serve, and `steadynorm env` says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYER_TESTS = ["tests/nn/test_batchnorm.py", "tests/nn/test_checkpoints.py", "tests/ops/test_native.py"]
ACCURACY = ["test_large_mean_costs_no_accuracy"]
"""What torch's operator does not promise."""


@pytest.fixture(scope="module")
def without_compiler(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a Python that finds a copy installed by a compiler that always fails."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(target), str(source)]
    environment = {**os.environ, "CC": "false"}
    done = subprocess.run(install, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in target.glob("steadynorm/kernels/cpu/_core*")] == ["_core.pyi"]
    return {**os.environ, "PYTHONPATH": str(target)}


def test_env_says_so(without_compiler: dict[str, str]) -> None:
    command = [sys.executable, "-m", "steadynorm.cli", "env"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=without_compiler)
    assert "for want of a C compiler: torch's own operators serve" in done.stdout


def test_layers_by_torchs_operators(without_compiler: dict[str, str]) -> None:
    left_out = [option for name in ACCURACY for option in ("--deselect", f"tests/nn/test_batchnorm.py::{name}")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *LAYER_TESTS, *left_out]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=without_compiler)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "no tests ran" not in done.stdout
