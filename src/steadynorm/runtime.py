"""How this process uses the machine: the memory it keeps, and what the compiled kernels have to work with."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TOP_PAD = 64 << 20
_kept = False


def keep_freed_memory() -> bool:
    """Has the process keep the memory it frees, instead of handing it back to the system each time.

    A large tensor's memory otherwise comes from the system anew for every operation, page by page, which takes longer
    than most operations on it. With glibc, this sets malloc's M_MMAP_MAX to 0, M_TRIM_THRESHOLD to -1 and M_TOP_PAD to
    64 MiB; elsewhere it does nothing.

    The cost: memory once used stays with the process until it ends, and blocks of different sizes may leave holes. Call
    it once, early, in a program that trains or serves; it cannot be undone.

    Returns:
        Whether memory is kept now.
    """
    global _kept
    if not _kept and sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL("libc.so.6").mallopt
        except (OSError, AttributeError):
            return False
        settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _TOP_PAD))
        _kept = all([mallopt(name, value) == 1 for name, value in settings])
    return _kept


def report() -> dict[str, str]:
    """What `steadynorm env` says beside versions: kernels, what they run on, and memory."""
    from .kernels import compiled

    core = compiled()
    if core is None:
        kernels = "not compiled when this was installed, for want of a C compiler: torch's own operators serve"
    else:
        kernels = (
            f"compiled, {core.instruction_set()} of {', '.join(core.instruction_sets())}, on {core.threads.pool()}"
        )
    return {
        "kernels": kernels,
        "freed memory": "kept (steadynorm.runtime.keep_freed_memory)" if _kept else "returned to the system",
    }
