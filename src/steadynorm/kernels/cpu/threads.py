"""The core's threads: torch's own.

torch's CPU operators run on GNU OpenMP's pool; so does the core, by the pool's C interface: one pool, woken in
microseconds, sized by `torch.set_num_threads`, and safe from several Python threads. Where torch uses another pool, and
in a forked child, which has none of its parent's threads, the core computes on the caller alone.
"""

from __future__ import annotations

import ctypes
import os

import torch

from . import _core

_NONE = (0, 0)
_found = _NONE
"""Addresses of the pool's functions."""


def share_torchs() -> None:
    """Has the core run on torch's pool."""
    global _found
    _found = _functions()
    _core.use_threads(*_found)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=lambda: _core.use_threads(*_NONE))


def pool() -> str:
    """Name of the pool that the core runs on."""
    return "torch's OpenMP threads" if _found != _NONE else "one thread"


def _functions() -> tuple[int, int]:
    """GOMP_parallel and omp_get_thread_num of the GNU OpenMP library that torch has loaded, if it has."""
    if not torch.backends.openmp.is_available() or not hasattr(os, "RTLD_NOLOAD"):
        return _NONE
    try:
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        functions = library.GOMP_parallel, library.omp_get_thread_num
    except (OSError, AttributeError):
        return _NONE
    parallel, number = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions)
    return parallel, number
