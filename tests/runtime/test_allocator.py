"""Memory that is kept for the next request is not fetched from the system at every step."""

import subprocess
import sys

import pytest

STEPS = """
import ctypes, sys
from audit.runtime.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
import torch

class Held(ctypes.Structure):  # mallinfo2 of glibc's malloc.h
    _fields_ = [(name, ctypes.c_size_t) for name in
                "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

mallinfo = getattr(ctypes.CDLL(None), "mallinfo2", None)
if mallinfo is None:
    sys.exit(3)
mallinfo.restype = Held
for step in range(3):
    maps = [torch.zeros(12 << 20) for _ in range(2)]  # 48 MB: up to 32 MB glibc may come to keep by itself
    del maps
print(mallinfo().fordblks)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_what_a_step_frees_waits_for_the_next_step() -> None:
    free = {}
    for how in ("kept", "as usual"):
        asked = subprocess.run([sys.executable, "-c", STEPS, how], capture_output=True, text=True)
        if asked.returncode == 3:
            pytest.skip("this C library does not tell what it holds (mallinfo2, glibc 2.33)")
        assert not asked.returncode, asked.stderr
        free[how] = int(asked.stdout)
    assert free["kept"] >= 2 * (48 << 20)
    assert free["as usual"] < 48 << 20
