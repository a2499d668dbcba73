"""Builds the compiled core, which no compiler need be there for: without it, torch's own operators serve."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CORE = Path("src/steadynorm/kernels/cpu/core")
WARNINGS = ["-Wall", "-Wextra", "-Wno-psabi"]  # vectors as arguments stay within a file
FLAGS = [
    *("-std=gnu11", "-O2", "-g0"),
    "-ftree-vectorize",
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),  # nan and inf keep their meaning
]
OF_GCC = ["-fvect-cost-model=dynamic"]  # as with -O3, which takes far longer


class InParallel(build_ext):
    """Compiles the files of an extension at the same time."""

    def build_extension(self, ext: Any) -> None:
        if self._is_gcc():
            ext.extra_compile_args += OF_GCC
        compile_one = self.compiler.compile

        def compile_all(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor() as pool:
                objects = pool.map(lambda source: compile_one([source], **options), sources)
                return [name for names in objects for name in names]

        self.compiler.compile = compile_all
        super().build_extension(ext)

    def _is_gcc(self) -> bool:
        command = getattr(self.compiler, "compiler_so", None)
        if not command or sys.platform == "win32":
            return False
        try:
            asked = subprocess.run([command[0], "--version"], capture_output=True, text=True, check=False)
        except OSError:
            return False
        return "Free Software Foundation" in asked.stdout


core = Extension(
    "steadynorm.kernels.cpu._core",
    sources=[str(path) for path in sorted(CORE.glob("*.c"))],
    depends=[str(path) for path in sorted(CORE.glob("*.h"))],
    extra_compile_args=[] if sys.platform == "win32" else FLAGS + WARNINGS,
    libraries=[] if sys.platform == "win32" else ["m"],
    py_limited_api=True,
    optional=True,
)

setup(ext_modules=[core], cmdclass={"build_ext": InParallel}, options={"bdist_wheel": {"py_limited_api": "cp310"}})
