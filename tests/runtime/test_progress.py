"""Progress bars: shown with the stage's name on a terminal, silent elsewhere, and never in the way of errors."""

import contextlib
import os
import sys

import pytest

from audit.runtime.progress import stage_progress, track


def _drain(descriptor: int) -> str:
    """Read what a pseudo-terminal has shown, after its other side was closed."""
    parts = []
    with contextlib.suppress(OSError):  # Linux ends a closed pseudo-terminal by EIO
        while part := os.read(descriptor, 4096):
            parts.append(part)
    os.close(descriptor)
    return b"".join(parts).decode()


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
def test_on_a_terminal_the_stage_is_named_and_stdout_stays_clean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pty

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    leader, follower = pty.openpty()
    with open(follower, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert sum(track([1, 2, 3], "Adding numbers", 3)) == 6
        with stage_progress("Filling up", 2.5, unit="kimg") as advance:
            advance(2)
            advance(0.5)
    shown = _drain(leader)
    assert capsys.readouterr().out == ""
    assert "Adding numbers" in shown
    assert "3/3" in shown
    assert "Filling up" in shown
    assert "kimg/s" in shown
