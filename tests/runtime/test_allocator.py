"""Memory that is kept for the next request costs the system no work at every step."""

import subprocess
import sys

import pytest

STEPS = """
import resource, sys
from audit.runtime.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
import torch
for step in range(21):
    maps = [torch.zeros(12 << 20) for _ in range(2)]  # 48 MB: up to 32 MB glibc may come to keep by itself
    del maps
    if step == 0:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator is glibc's")
def test_pages_are_fetched_once_and_not_at_every_step() -> None:
    faults = {}
    for how in ("kept", "as usual"):
        asked = [sys.executable, "-c", STEPS, how]
        faults[how] = int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    assert faults["kept"] < faults["as usual"] / 5
