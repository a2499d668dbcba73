"""What one forward of a (60, 100) training step costs beside arithmetic, part by part: python benchmarks/overhead.py.

The compiled core is one that only allocates what it gives, so that Python, autograd and the allocator are left.
Seconds are this thread's, the best of many repeats.
"""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import steadynorm as sn
from steadynorm import kernels
from steadynorm.functional import step
from steadynorm.inputs import prepare
from steadynorm.kernels import cpu
from steadynorm.kernels.running import Outcome
from steadynorm.ops import compiled
from steadynorm.ops.routes import choose

GRADIENT = torch.ones(100)
NOTHING = SimpleNamespace(
    takes=cpu.takes,
    train=lambda x, apply, running: (torch.empty_like(x), b"", None, Outcome(counted=True)),
    train_backward=lambda dy, x, *_: (
        torch.empty_like(x),
        torch.empty_like(GRADIENT),
        torch.empty_like(GRADIENT),
        None,
    ),
    normalize=lambda x, *_: torch.empty_like(x),
)


def microseconds(part: Callable[[], Any], number: int = 3000) -> float:
    part()
    return min(timeit.repeat(part, timer=time.thread_time, number=number, repeat=11)) / number * 1e6


def training(layer: Any, x: Tensor) -> dict[str, Callable[[], Any]]:
    """The parts, each with those inside it below it."""
    running = layer._running(False)
    given = (
        layer.weight,
        layer.bias,
        layer.eps,
        None,
        None,
        layer.activation,
        layer.negative_slope,
        running,
        True,
        False,
    )
    data, apply, core = prepare("layer", x, *given)
    return {
        "layer(x), all of it": lambda: layer(x),
        "  reading the running statistics": lambda: layer._running(False),
        "  checks": lambda: prepare("layer", x, *given),
        "  step": lambda: step("layer", data, apply, core, running, True),
        "    who computes": lambda: choose(x, apply, running, core=core),
        "    autograd function and core": lambda: compiled.step(
            data, apply.weight, apply.bias, None, core, apply, running
        ),
        "      memory for y": lambda: torch.empty_like(x),
        "  after it": lambda: layer._after(Outcome(counted=True)),
    }


def main() -> None:
    torch.set_num_threads(1)
    kernels.compiled = lambda: NOTHING  # type: ignore[assignment]
    x, dy, layer = torch.randn(60, 100).requires_grad_(), torch.ones(60, 100), sn.BatchNorm1d(100, activation="relu")
    for name, part in training(layer, x).items():
        print(f"{microseconds(part):6.1f} us  {name}")
    print(f"{microseconds(lambda: layer(x).backward(dy)):6.1f} us  layer(x).backward(dy)")
    layer.eval()
    with torch.no_grad():
        print(f"{microseconds(lambda: layer(x)):6.1f} us  layer(x) in eval mode without gradients")


if __name__ == "__main__":
    main()
