"""What a study ran on."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy
import torch

import steadynorm


def environment() -> dict[str, str]:
    """Versions, processor and threads, as a report shows them."""
    return {
        "steadynorm": steadynorm.__version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
    }


def _processor() -> str:
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
        return next(names, platform.machine())
    return platform.processor() or platform.machine()
