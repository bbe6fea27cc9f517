"""What is printed is text, and never changes how a command ends."""

import io
import sys

import pytest
from rich.table import Table
from rich.text import Text

from audit.runtime.progress import stage_progress
from audit.runtime.terminal import finish, forgive, say, show


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", r">= 0.5 caf\xe9 \u4e2d"),
        ("latin-1", r">= 0.5 caf\xe9 \u4e2d"),
        ("utf-8", "\N{GREATER-THAN OR EQUAL TO} 0.5 caf\\xe9 中"),
    ],
)
def test_what_cannot_be_encoded_is_replaced(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    forgive()
    say("\N{GREATER-THAN OR EQUAL TO} 0.5 caf\udce9 中")
    assert raw.getvalue().decode(encoding) == shown + "\n"


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title=Text("run [/] 3"))
    table.add_column("model")
    table.add_row(Text("resnet[seed=1]"))
    show(table)
    shown = capsys.readouterr().out
    assert "run [/] 3" in shown
    assert "resnet[seed=1]" in shown


class Gone(io.TextIOWrapper):
    def __init__(self) -> None:
        super().__init__(io.BytesIO())

    def write(self, _: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_reader_that_went_away_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Gone())
    say("x")
    finish()
    monkeypatch.setattr(sys, "stdout", None)
    say("x")
    finish()


def test_a_stage_with_brackets_has_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    shown.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with stage_progress("attacks on m[/] [seed=1]", 2) as advance:
        advance(2)
    assert "m[/] [seed=1]" in shown.getvalue()


def test_a_table_shown_as_a_whole_is_not_cut_by_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    table = Table("a long heading", "robust")
    table.add_row("a name of many words", "0.0 %\n(unchecked)")
    show(table, whole=True)
    said = capsys.readouterr().out
    assert "a name of many words" in said
    assert "(unchecked)" in said
