"""Progress bars: shown with the stage's name on a terminal, silent elsewhere, and never in the way of errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from audit.progress import stage_progress, track

ROOT = Path(__file__).parents[1]
SCRIPT = """
from audit.progress import stage_progress, track
print(sum(track([1, 2, 3], "Adding numbers", 3)))
with stage_progress("Filling up", 2.5) as advance:
    advance(2)
    advance(0.5)
"""


def test_silent_when_not_on_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    assert list(track("abc", "Spelling", 3)) == ["a", "b", "c"]
    with stage_progress("Waiting", 10) as advance:
        advance()
        advance(9)
    assert capfd.readouterr() == ("", "")


def test_errors_and_early_ends_pass_through() -> None:
    with pytest.raises(KeyError, match="mine"), stage_progress("Failing", 3):
        raise KeyError("mine")
    assert next(track(iter([1, 2]), "Stopping", 2)) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are POSIX")
def test_on_a_terminal_the_stage_is_named_and_stdout_stays_clean() -> None:
    import pty

    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, env=environment, check=True, timeout=60)
    os.close(follower)
    shown = os.read(leader, 100_000).decode()
    os.close(leader)
    assert done.stdout == b"6\n"
    assert "Adding numbers" in shown
    assert "3/3" in shown
    assert "Filling up" in shown
