"""Progress bars: shown with the stage's name on a terminal, silent elsewhere, and never in the way of errors."""

import contextlib
import json
import os
import sys

import pytest

from audit.runtime import progress
from audit.runtime.progress import choose_style, remark, stage_progress, track


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock whose single entry is the time."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_in_a_log_a_long_stage_prints_a_line_now_and_then_and_one_at_its_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    choose_style("plain")
    with stage_progress("Searching", 100) as advance:
        for _ in range(100):
            clock[0] += 7
            advance()
    out, lines = capsys.readouterr()
    said = lines.splitlines()
    assert out == ""
    assert said[0] == "Searching: 5 of 100, about 11 min 05 s left"
    assert said[-1] == "Searching: 100 of 100, 11 min 40 s"
    assert len(said) <= 1 + 700 / progress.LINE_SECONDS


def test_short_stages_share_the_lines_of_a_log(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    choose_style("plain")
    for stage in range(1000):
        with stage_progress(f"stage {stage}", 1) as advance:
            clock[0] += 0.1
            advance()
    assert len(capsys.readouterr().err.splitlines()) == 100 // progress.LINE_SECONDS


def test_json_lines_say_what_plain_ones_say(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    choose_style("json")
    with stage_progress("Searching", 4) as advance:
        clock[0] += 60
        advance(3)
    remark("Note on plain: something")
    line, last, note = map(json.loads, capsys.readouterr().err.splitlines())
    assert (line["stage"], line["done"], line["total"], line["left"]) == ("Searching", 3, 4, 20)
    assert last["seconds"] == 60
    assert note["note"] == "Note on plain: something"


def test_a_stage_that_starts_late_says_so_before_anything_is_done(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    choose_style("json")
    clock[0] += 60
    with stage_progress("Searching", 4) as advance:
        line = json.loads(capsys.readouterr().err)
        assert (line["done"], line["left"]) == (0, None)
        advance(4)


def test_the_end_of_a_stage_is_said_once(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    choose_style("plain")
    with stage_progress("Checking", 1) as advance:
        clock[0] += 87
        advance()
    assert capsys.readouterr().err.splitlines() == ["Checking: 1 of 1, 1 min 27 s"]


def test_amounts_are_short_and_large_ones_whole(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    choose_style("plain")
    with stage_progress("Searching", 16) as advance:
        clock[0] += 60
        advance(11.5644)
    with stage_progress("Reading", 12_345_678) as advance:
        clock[0] += 60
        advance(12_345_678)
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("Searching: 11.6 of 16,")
    assert said[-1] == "Reading: 12345678 of 12345678, 1 min 00 s"


def test_none_is_silent_even_in_a_log(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    choose_style("none")
    with stage_progress("Searching", 4) as advance:
        clock[0] += 600
        advance(4)
    remark("unheard")
    assert capsys.readouterr() == ("", "")
