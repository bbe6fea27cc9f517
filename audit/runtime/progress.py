"""What a stage has done and how long it will take: bars on a terminal, lines in a log, JSON for a program.

A program that imports this package sees bars on a terminal and nothing elsewhere. The command line asks for lines where
there is no terminal, because a job of CI that prints nothing for long is taken for hung.
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from audit.runtime.terminal import say

T = TypeVar("T")
Style = Literal["none", "plain", "rich", "json"]

LINE_SECONDS = 30.0
"""Time without a line after which one is printed, and at the soonest; a command that ends sooner may print none."""
SHORT_SECONDS = 10.0
"""A stage that took less prints no line at its end."""


@dataclass
class _Shown:
    """How this process shows progress (None: as `_current` says), and when it began to or printed its last line."""

    style: Style | None = None
    last_line: float = 0.0


_shown = _Shown()


def choose_style(style: Style | None) -> None:
    """Say how progress is shown from now on; None: bars where standard error is a terminal, lines elsewhere."""
    _shown.style = style or ("rich" if _on_terminal() else "plain")
    _shown.last_line = time.monotonic()


def _on_terminal() -> bool:
    return Console(stderr=True).is_terminal


def _current() -> Style:
    return _shown.style or ("rich" if _on_terminal() else "none")


class Advance(Protocol):
    """Report that `amount` further units of a stage are done."""

    def __call__(self, amount: float = 1) -> None: ...


class _Speed(ProgressColumn):
    """Units done in a second, of the last ten minutes."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.3g} {self.unit}/s")


@contextmanager
def stage_progress(stage: str, total: float, unit: str | None = None) -> Iterator[Advance]:
    """Show `stage` while the block runs; the yielded function takes the number of units just finished.

    With the name of a `unit` a bar shows its speed.
    """
    style = _current()
    if style in ("plain", "json"):
        lines = _Lines(stage, total, _json_line if style == "json" else _plain_line)
        yield lines.advance
        lines.end()
        return
    columns = (
        TextColumn("{task.description:<34}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        *(() if unit is None else (_Speed(unit),)),
    )
    # The remaining time rests on the last ten minutes: slow stages report less often than rich's default window.
    with Progress(*columns, console=_console(style), disable=style == "none", speed_estimate_period=600) as progress:
        task = progress.add_task(stage, total=total)

        def advance(amount: float = 1) -> None:
            progress.advance(task, amount)

        yield advance


def _console(style: Style) -> Console:
    # Bars that were asked for are drawn on whatever standard error is.
    return Console(stderr=True, force_terminal=True if style == "rich" and not _on_terminal() else None)


class _Lines:
    """Lines on standard error for one stage: what is done, and the time left at the speed so far."""

    def __init__(self, stage: str, total: float, line: Callable[["_Lines", float], str]) -> None:
        self.stage, self.total, self.done, self.line = stage, total, 0.0, line
        self.said: float | None = None
        self.began = time.monotonic()
        self._now_and_then()

    def advance(self, amount: float = 1) -> None:
        self.done += amount
        self._now_and_then()

    def end(self) -> None:
        if time.monotonic() - self.began >= SHORT_SECONDS and self.said != self.total:
            self._say()

    def _now_and_then(self) -> None:
        if time.monotonic() - _shown.last_line >= LINE_SECONDS:
            self._say()

    def _say(self) -> None:
        now = time.monotonic()
        _shown.last_line, self.said = now, self.done
        say(self.line(self, now - self.began), err=True)


def _left(lines: _Lines, seconds: float) -> float | None:
    """Seconds left at the speed so far; None where nothing is done yet."""
    return None if not lines.done else seconds * max(lines.total - lines.done, 0) / lines.done


def _plain_line(lines: _Lines, seconds: float) -> str:
    left = _left(lines, seconds)
    tail = f", {duration(seconds)}" if not left else f", about {duration(left)} left"
    return f"{lines.stage}: {_amount(lines.done)} of {_amount(lines.total)}{tail if lines.done else ''}"


def _amount(amount: float) -> str:
    """To one decimal: stages whose steps are parts of an image advance by fractions."""
    return f"{round(amount, 1):.12g}"


def _json_line(lines: _Lines, seconds: float) -> str:
    left = _left(lines, seconds)
    return json.dumps(
        {
            "time": round(time.time(), 3),
            "stage": lines.stage,
            "done": lines.done,
            "total": lines.total,
            "seconds": round(seconds, 3),
            "left": None if left is None else round(left, 3),
        }
    )


def duration(seconds: float) -> str:
    """Write a time in words, `1 h 05 min`, `5 min 03 s` or `7 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def is_shown() -> bool:
    """Whether anybody is shown how far the audit is."""
    return _current() != "none"


def remark(text: str, ahead: float | None = None) -> None:
    """Say `text` on standard error while stages go on, beside bars or among lines of JSON.

    Among plain lines it would be noise, for it stands in the results as well; unless it is about what lies `ahead`, in
    seconds, and that is long enough for a line.
    """
    style = _current()
    if style == "plain" and ahead is not None and ahead >= LINE_SECONDS:
        say(text, err=True)
    elif style == "rich":
        _console(style).print(Text(text), soft_wrap=True)
    elif style == "json":
        say(json.dumps({"time": round(time.time(), 3), "note": text}), err=True)


def track(items: Iterable[T], stage: str, total: int) -> Iterator[T]:
    """Yield `items` behind a bar for `stage` of `total` units."""
    with stage_progress(stage, total) as advance:
        for item in items:
            yield item
            advance()
