"""What one forward of a (60, 100) training step costs beside arithmetic, part by part: python benchmarks/overhead.py.

The compiled core is one that does nothing but allocate y, so that only Python, autograd and the allocator are left.
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
from steadynorm import kernels, ops
from steadynorm.functional import step
from steadynorm.inputs import prepare
from steadynorm.kernels.running import FINE
from steadynorm.ops.routes import choose, facts

STATISTICS, GRADIENT = torch.ones(4, 100, dtype=torch.float64), torch.ones(100)
NOTHING = SimpleNamespace(
    train=lambda x, apply, running: (torch.empty_like(x), STATISTICS, None, True),
    train_backward=lambda dy, x, *_: (torch.empty_like(x), GRADIENT, GRADIENT, None),
    normalize=lambda x, *_: torch.empty_like(x),
)


def microseconds(part: Callable[[], Any], number: int = 3000) -> float:
    part()
    return min(timeit.repeat(part, timer=time.thread_time, number=number, repeat=11)) / number * 1e6


def training(layer: Any, x: Tensor) -> dict[str, Callable[[], Any]]:
    """The parts, each with those inside it below it."""
    running = layer._running()
    given = layer.weight, layer.bias, layer.eps, None, None, layer.activation, layer.negative_slope, running, True
    data, apply = prepare("layer", x, *given)
    call = facts(data, apply, running)
    return {
        "layer(x), all of it": lambda: layer(x),
        "  what is asked of running statistics": layer._running,
        "  checks": lambda: prepare("layer", x, *given),
        "  step": lambda: step("layer", data, apply, running, True),
        "    facts": lambda: facts(data, apply, running),
        "    the table": lambda: choose(call),
        "    autograd function and core": lambda: ops.compiled.train(call.core, data, apply, running, True),
        "      memory for y": lambda: torch.empty_like(x),
        "  counting the batch": lambda: layer._after(FINE),
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
