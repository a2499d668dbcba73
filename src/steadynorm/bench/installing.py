"""How long `pip install` of the source takes, beyond its dependencies."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .processes import NotMeasuredError
from .record import Row

WHAT = "pip install"


def keys(source: Path | None) -> list[dict[str, Any]]:
    """What to measure: nothing without a source."""
    return [] if source is None else [{"what": WHAT}]


def measure(source: Path) -> list[Row]:
    """One row: seconds to build and install into an empty folder, with the dependencies and setuptools already here.

    A copy is built, so that nothing built before helps and nothing is left behind.

    Raises:
        NotMeasuredError: `source` cannot be installed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy, target = Path(scratch, "source"), Path(scratch, "target")
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns(".*", "runs", "build", "*.egg-info", "*.so"))
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps", "--no-cache-dir"]
        command += ["--no-build-isolation", "--no-index", "--target", str(target), str(copy)]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
    if done.returncode:
        reason = next((line for line in reversed(done.stderr.splitlines()) if line.strip()), "it says nothing")
        raise NotMeasuredError(
            f"pip install {source} was not timed: {reason.strip()}. Mend that (setuptools must be installed here), "
            "and the same command measures what is missing."
        )
    return [{"what": WHAT, "seconds": seconds}]
