# pyright: reportMissingImports=false
"""A fresh process that does one thing and says what it took: `python child.py REQUEST`, request and answer as JSON.

Run as a file, not as a module of steadynorm: what the first import costs is part of what is asked.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


def main() -> None:
    request = json.loads(sys.argv[1])
    what = request.pop("what")
    seconds = {"first step": first_step, "peak": peak}[what](**request)
    print(json.dumps({"seconds": seconds, **memory()}))


def first_step(variant: str) -> float:
    """Seconds, once torch is imported, until a small network has done a training step: import, build, step."""
    import torch
    from torch import nn

    start = time.perf_counter()
    if variant == "torch":
        block = [nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    else:
        import steadynorm

        block = [steadynorm.BatchNorm2d(16, activation="relu")]
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), *block, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
    )
    labels = torch.arange(8)
    nn.functional.cross_entropy(network(torch.randn(8, 3, 32, 32)), labels).backward()
    with torch.no_grad():
        for parameter in network.parameters():  # not torch.optim, whose first step imports torch's compiler
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    return time.perf_counter() - start


def peak(variant: str, depth: int, batch: int, pixels: int) -> float:
    """Seconds of two training steps of a ResNet, channels first, freed memory kept."""
    from steadynorm import runtime
    from steadynorm.bench.cases import FIRST
    from steadynorm.bench.networks import step

    runtime.keep_freed_memory()
    run = step(variant, depth, batch, pixels, FIRST, "training")
    start = time.perf_counter()
    run()
    run()
    return time.perf_counter() - start


def memory() -> dict[str, float | None]:
    """Resident memory of this process now, and the most it had; None where there is no /proc."""
    names = {"VmRSS": "resident_megabytes", "VmHWM": "peak_megabytes"}
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return dict.fromkeys(names.values())
    found = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Vm")}
    return {said: float(found[name]) / 1e3 for name, said in names.items()}


if __name__ == "__main__":
    main()
