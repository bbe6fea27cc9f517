"""`report`: render the HTML report of earlier results."""

from pathlib import Path
from typing import Annotated

import typer

from audit.runtime.terminal import say


def report(
    results: Annotated[Path, typer.Argument(metavar="RESULTS.json")],
    out: Annotated[Path | None, typer.Option("--out", help="file to write; default: report.html beside it")] = None,
) -> None:
    """Render the HTML report of earlier results again."""
    from audit.report.build import render_files
    from audit.storage.output import record

    files = render_files(results, out)
    record(*files)
    say(files[0])
