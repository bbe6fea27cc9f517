"""How memory is fetched from the system and given back; loads fast, for it imports no torch.

A step of a search or of an attack makes and frees maps of some hundred megabytes. A C library that gives each of them
back gets empty pages for the next step, which the system has to clear: up to a fifth of the time of a step
(benchmarks/README.md). What is computed does not change.
"""

import ctypes
import os
import sys

LARGEST = 2**28
"""Bytes from which on an array is given back as soon as it is freed."""
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of `mallopt` in glibc's malloc.h."""


def keep_freed_memory() -> None:
    """Let this process keep what it frees for its next request, and torch ask for huge pages.

    Does nothing where the C library has no such settings. Huge pages are for a process that has not imported torch yet.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if not sys.platform.startswith("linux"):
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "gnu_get_libc_version"):
        library.mallopt(_MMAP_THRESHOLD, LARGEST)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        library.mallopt(_TOP_PAD, 2**26)
