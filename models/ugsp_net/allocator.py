"""Keep freed memory: the C library's defaults hand every large tensor back to the system and fault it in again.

Measured on two cores, a training step of 16 crops of 128x128: 0.37 s as it is, 0.28 s with freed memory kept. One heap
for all threads: 1 % of the time of doubling 1920x1080 and 854x480, and a third fewer pages that are faulted in.
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc not to map large blocks one by one nor to trim the heap, and to have one heap for all threads: those
    of threads are trimmed whatever it is told. False where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, LARGEST), (M_TOP_PAD, 64 << 20), (M_ARENA_MAX, 1))
    return all(mallopt(name, value) == 1 for name, value in settings)


def release_freed_memory() -> None:
    """Hand back to the system what is free now, so that it can be counted; does nothing where there is no glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
