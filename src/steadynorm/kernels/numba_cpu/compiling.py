"""How the kernels are compiled: one jit, one C entry point, and where the compiled code is kept."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.extending import intrinsic

_FILES = sorted(Path(__file__).parent.glob("*.py"))
_SOURCE = hashlib.sha256(b"".join(path.read_bytes() for path in _FILES)).hexdigest()[:16]
"""Names this very source, as it was when it was imported."""
carray: Any = numba.carray  # type: ignore[attr-defined]
REASSOCIATE = {"reassoc", "contract", "nsz"}
"""What a sum may do with its terms: any order, fused multiply-add. nan and inf keep their meaning."""


class _NoAlias(Compiler):
    """Promises LLVM that a function's array arguments do not overlap, without which it does not vectorize sums."""

    def define_pipelines(self) -> Any:
        self.state.flags = self.state.flags.copy()
        self.state.flags.noalias = True
        return super().define_pipelines()


class _SealedLibrary(JITCodeLibrary):
    """Compiled code of which others see the C function alone.

    Numba compiles a function that kernels share anew into each, under one name, and its linker then takes the one that
    was loaded first for all: sums would be rounded according to which kernels a process, or one that filled the cache
    before it, happened to compile first.
    """

    def _optimize_final_module(self) -> None:
        super()._optimize_final_module()
        for function in self._final_module.functions:
            if not function.is_declaration and not function.name.startswith("cfunc."):
                function.linkage = binding.Linkage.internal


class _Sealed(Compiler):
    """Compiles into a library of its own."""

    def define_pipelines(self) -> Any:
        codegen, identity = self.state.targetctx.codegen(), self.state.func_id
        self.state.library = _SealedLibrary(codegen, identity.func_qualname)
        self.state.library.enable_object_caching()
        return super().define_pipelines()


_FROM_KERNELS_ALONE = {"nogil": True, "error_model": "numpy", "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""What is never called from Python needs no code for that, which takes a sixth of the time that compiling takes."""


def summing(function: Callable) -> Any:
    """Compiles sums over a row, in any order; its array arguments do not overlap unless they are all read only."""
    return numba.njit(**_FROM_KERNELS_ALONE, fastmath=REASSOCIATE, pipeline_class=_NoAlias)(function)


def elementwise(function: Callable) -> Any:
    """Compiles arithmetic on each value of a row, in the order it is written; arguments as for `summing`."""
    return numba.njit(**_FROM_KERNELS_ALONE, fastmath={"contract", "nsz"}, pipeline_class=_NoAlias)(function)


def inner(function: Callable) -> Any:
    """Compiles a function that only kernels call."""
    return numba.njit(**_FROM_KERNELS_ALONE)(function)


def exact(function: Callable) -> Any:
    """Compiles arithmetic on one value whose order of operations matters; always inlined, so that rows vectorize."""
    return numba.njit(**_FROM_KERNELS_ALONE, forceinline=True, fastmath={"contract"})(function)


def entry(function: Callable) -> Any:
    """Compiles a C function of one pointer, kept on disk for the next process."""
    with _cache_folder():
        compiled = numba.cfunc(types.void(types.voidptr), cache=True, error_model="numpy", pipeline_class=_Sealed)
        return compiled(function)


def numba_version() -> str:
    return numba.__version__


@contextmanager
def _cache_folder() -> Iterator[None]:
    """Sends what numba caches to the user's cache folder, in a subfolder for this very source."""
    before = numba.config.CACHE_DIR  # type: ignore[attr-defined]
    numba.config.CACHE_DIR = before or str(cache_folder())  # type: ignore[attr-defined]
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before  # type: ignore[attr-defined]


def cache_folder() -> Path:
    """Where compiled kernels are kept; NUMBA_CACHE_DIR, where set, goes before it."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    elif sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "steadynorm" / f"kernels-{_SOURCE}"


def _pointer(typing_context: Any, address: Any) -> Any:
    """The address, an integer, as a pointer to anything."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), codegen


pointer: Any = intrinsic(_pointer)


def _fetch_add(typing_context: Any, address: Any, value: Any) -> Any:
    """Atomically adds to the int64 at an address and gives what was there before."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, arguments[1], "acq_rel")

    return types.int64(types.int64, types.int64), codegen


fetch_add: Any = intrinsic(_fetch_add)


def _read(typing_context: Any, address: Any) -> Any:
    """The int64 at an address, and with it all that was written before it by who wrote it atomically."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(types.int64), codegen


read: Any = intrinsic(_read)


def _give_way(typing_context: Any) -> Any:
    """Lets another thread have the processor, where the system has a call for that which C knows everywhere."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if sys.platform != "win32":
            kind = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, kind, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), codegen


give_way: Any = intrinsic(_give_way)


def _call_kernel(typing_context: Any, kernel: Any, address: Any) -> Any:
    """Calls the C function at an address with another address."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t])
        place = builder.inttoptr(arguments[0], function.as_pointer())
        builder.call(place, [builder.inttoptr(arguments[1], cgutils.voidptr_t)])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


call_kernel: Any = intrinsic(_call_kernel)


def _stream_line(typing_context: Any, source: Any, target: Any) -> Any:
    """Copies 64 bytes to an address that is a multiple of 64, past the caches."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        line = ir.VectorType(ir.FloatType(), 16).as_pointer()
        value = builder.load(builder.inttoptr(arguments[0], line), align=1)
        written = builder.store(value, builder.inttoptr(arguments[1], line), align=64)
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.IntType(32)(1)]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


stream_line: Any = intrinsic(_stream_line)
