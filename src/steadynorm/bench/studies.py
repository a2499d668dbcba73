"""The studies' CNN, a training step of it beside torch's layers; and a grid of runs by one process and by several."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..study.claims import find
from ..study.models import cnn
from ..study.runner import Engine, run_grid
from .networks import NONE
from .providers import OURS, TORCH, Step

CNN, GRID = "MNIST CNN", "grid of CNN runs"
ALONE, TOGETHER = "one process", "two processes"


def keys(quick: bool) -> list[dict[str, Any]]:
    """What to time: steps of so many images; grids of so many runs of so many epochs on digits."""
    return [{"what": CNN, "size": 64}, {"what": GRID, "size": 4 if quick else 24}]


def steps(size: int) -> dict[str, Step]:
    """A training step (forward, backward, Adam) with our layers, with torch's, and without normalization."""
    return {name: _step(name, size) for name in (OURS, TORCH, NONE)}


def _step(name: str, size: int) -> Step:
    torch.manual_seed(0)
    model = cnn(1, 28, 10, batch_norm=name == OURS)
    if name == TORCH:
        model = nn.Sequential(*(part for layer in model for part in _with_torchs(layer)))
    images = torch.rand(size, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(size) % 10
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def _with_torchs(layer: nn.Module) -> list[nn.Module]:
    """torch's normalization between a convolution or dense layer and its ReLU."""
    if isinstance(layer, nn.Conv2d):
        return [layer, nn.BatchNorm2d(layer.out_channels)]
    if isinstance(layer, nn.Linear) and layer.out_features != 10:
        return [layer, nn.BatchNorm1d(layer.out_features)]
    return [layer]


def grids(size: int) -> dict[str, float]:
    """Milliseconds a run, by how many processes compute; the processes have been started before."""
    claim = find(["cnn"])["cnn"]
    cells = [cell for cell in claim.cells("quick", seeds=size // 2)]
    cells = [type(cell)(cell.claim, cell.factors, cell.seed, {**cell.settings, "epochs": 4}) for cell in cells]
    found = {}
    for name, jobs in ((ALONE, 1), (TOGETHER, 2)):
        with tempfile.TemporaryDirectory() as warm, tempfile.TemporaryDirectory() as folder:
            run_grid({"cnn": claim}, cells[: 2 * jobs], Path(warm), None, Engine(jobs=jobs))
            start = time.perf_counter()
            run_grid({"cnn": claim}, cells, Path(folder), None, Engine(jobs=jobs))
            found[name] = (time.perf_counter() - start) * 1e3 / len(cells)
    return found
