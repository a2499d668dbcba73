"""Runs a compiled kernel on torch's own threads.

torch's CPU operators run on GNU OpenMP's pool; so do the kernels, by the pool's C interface: one pool, woken in
microseconds, sized by `torch.set_num_threads`, and safe from several Python threads. Where torch uses another pool,
they run on a pool of Python threads. A forked child has none of its parent's threads: there, kernels run on the caller
alone.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache

import torch

Call = ctypes.Array | bytes
"""A packed record, passed by its address."""
Kernel = Callable[[Call], None]
_KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def run(kernel: int, call: Call, threads: int) -> None:
    """Calls the C function at address `kernel` with the address of `call` on so many threads, this one included.

    GNU OpenMP is always asked for as many as torch asks for: it ends and begins threads when that number changes.
    """
    if threads <= 1 or _forked:
        function(kernel)(call)
    elif (parallel := _openmp()) is not None:
        parallel(kernel, call, threads, 0)
    else:
        others = [_pool().submit(function(kernel), call) for _ in range(threads - 1)]
        try:
            function(kernel)(call)
        finally:  # a thread that has begun reads memory of the caller
            wait(other for other in others if not other.cancel())


def pool() -> str:
    """Name of the pool that kernels run on."""
    return "torch's OpenMP threads" if _openmp() is not None else "Python threads"


@lru_cache
def function(kernel: int) -> Kernel:
    return _KERNEL(kernel)


@lru_cache
def _openmp() -> Callable[[int, Call, int, int], None] | None:
    """GOMP_parallel of the GNU OpenMP library that torch has loaded, if it has."""
    if not torch.backends.openmp.is_available() or not hasattr(os, "RTLD_NOLOAD"):
        return None
    try:
        parallel = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW).GOMP_parallel
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel


@lru_cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="steadynorm")
