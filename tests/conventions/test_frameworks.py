"""Keras' and Flax' own layers compute what ours do, converted either way: inference, and a step of training."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from .oracle import CASES

WAYS = ["from_keras", "to_keras, steadynorm", "to_keras, torch.nn"]
WAYS += [way.replace("keras", "flax") for way in WAYS]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the oracle writes; Keras keeps its settings in a folder of its own."""
    folder = tmp_path_factory.mktemp("oracle")
    environment = {**os.environ, "KERAS_BACKEND": "torch", "KERAS_HOME": str(folder), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.conventions.oracle", str(folder / "found.pt")]
    root = Path(__file__).parents[2]
    process = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return torch.load(folder / "found.pt", weights_only=True)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", WAYS)
def test_same_outputs_and_the_same_step(way: str, case: str, found: dict[str, Any]) -> None:
    """Flax in float64; Keras computes in float32 whatever the dtype, and E[x²] - E[x]²."""
    tolerance = 2e-5 if "keras" in way else 1e-10
    outcome = found[f"{way}, {case}"]
    assert set(outcome) == {"eval", "train", "mean", "var"}
    for theirs, ours in outcome.values():
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_the_module_of_nnx_in_float32(found: dict[str, Any]) -> None:
    for theirs, ours in found["from_nnx"].values():
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=1e-5, atol=1e-6)


def test_frozen_in_keras_is_frozen_here(found: dict[str, Any]) -> None:
    assert len(found["frozen"]) == 6
    for theirs, ours in found["frozen"].values():
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)
