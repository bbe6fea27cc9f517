"""Processes that compute parts: copies of one that has loaded what they need, which end with the one that asked."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from support_engine import seen_of_itself
from support_small_audit import configured

from audit.runtime import processes
from audit.runtime.engine import open_engine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every process is begun anew")
KILLED = """
import torch
from support_engine import squared
from support_small_audit import configured
from audit.runtime.engine import open_engine

if __name__ == "__main__":
    with open_engine(configured(workers=2), torch.device("cpu")) as engine:
        print(next(engine.map(squared, [1]))[1][1], flush=True)
        input()
"""


@pytest.mark.slow
def test_processes_have_loaded_what_computes_and_see_a_later_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    processes.start_ahead()
    monkeypatch.setenv("SPRUCE_LATER", "seen")
    with open_engine(configured(workers=2), torch.device("cpu")) as engine:
        assert engine is not None
        ((_, found),) = engine.map(seen_of_itself, [processes.LOADED])
    assert found == (True, "seen", False), "loaded before it was asked for, told the environment, open to Ctrl-C"


@pytest.mark.slow
def test_processes_end_with_one_that_is_killed() -> None:
    command, environment = [sys.executable, "-c", KILLED], {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as asking:
        assert asking.stdout is not None
        worker = int(asking.stdout.readline())
        asking.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{worker}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{worker}")


def test_without_a_socket_every_process_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(processes.forkserver, "ensure_running", refused)
    assert processes.start_ahead().get_start_method() == "spawn"
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
