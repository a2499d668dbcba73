"""The whole benchmark."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from . import networks, peers
from .cases import FIRST, FORWARD, INFERENCE, LAST, RELU, RESNET50, TRAINING, Case, grid
from .errors import largest
from .providers import inputs, steps
from .record import Benchmark
from .timing import copy_step, in_turns

COPY = "copy"
Show = Callable[[str], None]


def run(benchmark: Benchmark, quick: bool, with_networks: bool, peers_python: str | None, show: Show) -> None:
    """Fills in the benchmark, saying what it is at."""
    if peers_python:
        _peers(benchmark, peers_python, quick, show)
    for case in grid(quick):
        show(f"{case.shape}, {case.order}, {case.dtype}, {case.epilogue}, {case.mode}")
        benchmark.cases.append(_case(case))
    if with_networks:
        for row in _networks(quick):
            show(f"ResNet-{row['depth']}, {row['order']}, {row['mode']}")
            benchmark.networks.append(_network(row))


def _case(case: Case) -> dict[str, Any]:
    given = inputs(case)
    compiles = case.dtype == "float32" and case.epilogue == RELU and case.mode != FORWARD and case.shape in RESNET50
    providers = steps(case, given, compiles)
    timings = in_turns({COPY: copy_step(given.x), **providers})
    floor = timings[COPY].median / 2 * case.passes
    row = {**case._asdict(), "shape": list(case.shape), "megabytes": case.megabytes, "floor_ms": floor}
    row["timings"] = {name: asdict(timing) for name, timing in timings.items()}
    row["errors"] = largest(case, given, providers) if case.epilogue == RELU else {}
    return row


def _networks(quick: bool) -> list[dict[str, Any]]:
    settings = [(18, 8, 96)] if quick else [(18, 16, 160), (50, 16, 160)]
    return [
        {"depth": depth, "batch": batch, "pixels": pixels, "order": order, "mode": mode}
        for depth, batch, pixels in settings
        for order in (FIRST, LAST)
        for mode in ("training", INFERENCE)
    ]


def _network(row: dict[str, Any]) -> dict[str, Any]:
    timings = in_turns(networks.steps(**row), seconds=4.0)
    row = {**row, "timings": {name: asdict(timing) for name, timing in timings.items()}}
    if row["mode"] == "training" and row["order"] == FIRST:
        sizes = row["depth"], row["batch"], row["pixels"]
        row["peak_megabytes"] = {name: networks.peak_megabytes(name, *sizes) for name in timings}
    return row


def _peers(benchmark: Benchmark, python: str, quick: bool, show: Show) -> None:
    """BN + ReLU, float32, channels last, as both frameworks have it."""
    shapes = [(32, 64, 56, 56)] if quick else RESNET50
    asked = [((n, h, w, c), mode) for n, c, h, w in shapes for mode in (FORWARD, TRAINING, INFERENCE)]
    for framework in ("jax", "tensorflow"):
        show(framework)
        command = [python, str(Path(peers.__file__)), framework]
        done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=False)
        if done.returncode:
            show(f"{framework} is not there: {done.stderr.strip().splitlines()[-1:]}")
            continue
        answer = json.loads(done.stdout.splitlines()[-1])
        benchmark.environment[framework] = answer["version"]
        for ((n, h, w, c), mode), median in zip(asked, answer["medians"], strict=True):
            benchmark.peers.append({"framework": framework, "shape": [n, c, h, w], "mode": mode, "median": median})
