"""Progress bars with the stage's name and remaining time; silent when standard error is not a terminal."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

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

T = TypeVar("T")


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
    """Show a bar for `stage` while the block runs; the yielded function takes the number of units just finished.

    With the name of a `unit` the bar shows its speed.
    """
    console = Console(stderr=True)
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
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=600) as progress:
        task = progress.add_task(stage, total=total)

        def advance(amount: float = 1) -> None:
            progress.advance(task, amount)

        yield advance


def remark(text: str) -> None:
    """Say `text` on standard error while stages go on, where it is a terminal."""
    console = Console(stderr=True)
    if console.is_terminal:
        console.print(Text(text), soft_wrap=True)


def track(items: Iterable[T], stage: str, total: int) -> Iterator[T]:
    """Yield `items` behind a bar for `stage` of `total` units."""
    with stage_progress(stage, total) as advance:
        for item in items:
            yield item
            advance()
