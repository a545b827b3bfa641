"""madvise(2): what a process tells Linux about its memory."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from pathlib import Path


def adviser() -> Callable[[int, int, int], int] | None:
    """madvise of (address, bytes, advice), which returns -1 where it cannot; None on other systems than Linux, and where its files cannot be read."""
    if not sys.platform.startswith("linux") or not Path("/proc/self/smaps_rollup").exists():
        return None
    try:
        advise = ctypes.CDLL(None).madvise
    except (OSError, AttributeError):
        return None
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    call: Callable[[int, int, int], int] = advise
    return call
