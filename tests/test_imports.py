"""Imports go one way, optional packages are imported where they belong, and `import steadynorm` stays light."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import steadynorm

ROOT = Path(steadynorm.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))

CHAIN = [
    {"cli"},
    {"bench"},
    {"study", "report"},
    {"inspect", "surgery", "statistics", "conventions"},
    {"walk", "loading"},
    {"nn"},
    {"runtime"},
    {"functional"},
    {"ops"},
    {"inputs"},
    {"kernels"},
    {"moments", "errors", "torch_internals"},
]
"""A part may import itself and any part of a later row."""

BESIDE = {"cli": {"records"}, "study": {"records"}, "report": {"records"}, "bench": {"reference"}}
"""What else a part may import: `records` and `reference` stand beside the chain, and import `errors` and nothing."""

OWNERS = {"triton": "kernels/triton_gpu"}
"""Packages that only files of these names may import."""

PARTS = set().union(*CHAIN, {"records", "reference"})

USERS = {"cli", "study", "bench"}
"""Who may use the public names of `steadynorm` itself, as a user does."""

WITHOUT_TORCH = {"report", "records", "errors", "reference"}
ON_DEMAND = "bench cli report study".split()
"""Parts that `import steadynorm` must not bring."""


def part_of(path: str) -> str:
    """The part of the package a file belongs to: kernels/eager.py → kernels, ops.py → ops, __init__.py → "" (all)."""
    first = path.split("/", maxsplit=1)[0].removesuffix(".py")
    return "" if first == "__init__" else first


def imported(path: str, source: str) -> Iterator[str]:
    """Every module a file imports, anywhere in it, by absolute dotted name; `from a import b` counts as a.b."""
    package = ["steadynorm", *path.split("/")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def allowed_parts(part: str) -> set[str]:
    """The parts of steadynorm that `part` may import."""
    if part == "":
        return PARTS - {"cli", "reference"}
    if part == "records":
        return {"records", "errors"}
    if part == "report":
        return {"report", "records", "errors"}
    if part == "reference":
        return set()
    row = next((row for row, parts in enumerate(CHAIN) if part in parts), None)
    if row is None:
        raise LookupError(f"{part!r} is in no row of CHAIN: say where it stands")
    return {part}.union(*CHAIN[row + 1 :], BESIDE.get(part, set()))


def offences(path: str, source: str) -> list[str]:
    """What a file at `path` imports and may not."""
    part, found = part_of(path), []
    allowed = allowed_parts(part)
    for name in imported(path, source):
        first, *rest = name.split(".")
        if first == "steadynorm":
            target = rest[0] if rest else ""
            if target not in allowed and not (target not in PARTS and part in USERS):
                found.append(f"{path}: {part or 'steadynorm'} may not import {name}")
        elif first in OWNERS and not path.startswith(OWNERS[first]):
            found.append(f"{path}: only {OWNERS[first]}*.py may import {first}")
        elif first == "torch" and part in WITHOUT_TORCH:
            found.append(f"{path}: {part} may not import torch")
        elif part == "reference" and first != "numpy" and first not in sys.stdlib_module_names:
            found.append(f"{path}: reference may import only numpy and the standard library, not {first}")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file: Path) -> None:
    assert not offences(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("moments.py", "from .kernels import Apply"),
        ("moments.py", "from . import kernels"),
        ("moments.py", "import steadynorm.ops"),
        ("moments.py", "from steadynorm import functional"),
        ("moments.py", "import steadynorm"),
        ("moments.py", "def f():\n    from .nn.batchnorm import BatchNorm1d"),
        ("kernels/eager.py", "from ..ops import dense"),
        ("kernels/eager.py", "from .. import reference"),
        ("ops.py", "from . import BatchNorm1d"),
        ("nn/batchnorm.py", "from ..surgery.folding import fold"),
        ("nn/batchnorm.py", "from ..records import load"),
        ("study/grid.py", "from ..cli import main"),
        ("study/study.py", "from ..report import write"),
        ("surgery/convert.py", "from ..study.compare import compare"),
        ("surgery/fold.py", "from ..statistics import hold"),
        ("report/page.py", "import torch"),
        ("report/page.py", "from torch import Tensor"),
        ("report/page.py", "if True:\n    import torch.nn as nn"),
        ("report/page.py", "from ..nn import BatchNorm1d"),
        ("records.py", "from .moments import Moments"),
        ("reference.py", "from .errors import SteadynormError"),
        ("reference.py", "import scipy"),
        ("nn/sync.py", "from .. import reference"),
        ("__init__.py", "from . import reference"),
        ("__init__.py", "from .cli import main"),
        ("kernels/eager.py", "import triton"),
        ("kernels/cpu/threads.py", "from triton import jit"),
        ("study/run.py", "import triton.language as tl"),
        ("kernels/__init__.py", "try:\n    import triton\nexcept ImportError:\n    pass"),
    ],
)
def test_forbidden_imports_are_caught(path: str, source: str) -> None:
    assert len(offences(path, source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("__init__.py", "from . import functional, nn\nfrom .moments import Moments"),
        ("nn/batchnorm.py", "from ..functional import batch_norm\nfrom ..errors import SteadynormError\nimport torch"),
        ("nn/__init__.py", "from .batchnorm import BatchNorm1d\nfrom . import batchnorm"),
        ("kernels/cpu.py", "from . import Apply\nfrom ..moments import Moments"),
        ("kernels/triton_gpu.py", "import triton\nimport triton.language as tl"),
        ("cli/studies.py", "from ..study.study import run\nfrom .. import records, __version__"),
        (
            "study/grid.py",
            "from ..records import save\nfrom ..walk import norms\nimport torch\nimport steadynorm as sn",
        ),
        ("report/page.py", "from .. import records\nfrom ..errors import RecordError\nimport jinja2\nimport numpy"),
        ("reference.py", "import math\nimport numpy as np\nfrom numpy.typing import ArrayLike"),
    ],
)
def test_allowed_imports_pass(path: str, source: str) -> None:
    assert not offences(path, source)


def test_a_new_part_must_be_placed() -> None:
    with pytest.raises(LookupError, match="'helpers' is in no row of CHAIN"):
        offences("helpers.py", "import torch")


IMPORT = """
import json, sys
import torch
before = set(sys.modules)
import steadynorm
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_import_is_light() -> None:
    """After torch, it brings its own modules and parts of numpy: nothing optional, no study, no command line."""
    process = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True)
    brought = {name for name in json.loads(process.stdout) if name.partition(".")[0] not in sys.stdlib_module_names}
    assert {name.partition(".")[0] for name in brought} <= {"steadynorm", "numpy"}
    assert "steadynorm.nn" in brought
    assert not {f"steadynorm.{part}" for part in ON_DEMAND} & brought
