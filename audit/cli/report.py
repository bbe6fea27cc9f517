"""`report`: render the HTML report of earlier results, or one page of several audits."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from audit.cli.arguments import folder_names
from audit.runtime.terminal import say

SERIES = Path("series.html")


def report(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS.json ...", help="several: one page, the others beside the first")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="file to write; default: report.html beside it, of several series.html")
    ] = None,
) -> None:
    """Render the HTML report of earlier results again, or of several audits what changed from one to the other."""
    if len(results) > 1:
        say(_series(results, SERIES if out is None else out))
        return
    from audit.report.build import render_files
    from audit.storage.output import record

    files = render_files(results[0], out)
    record(*files)
    say(files[0])


def _series(results: Sequence[Path], out: Path) -> Path:
    from audit.errors import ConfigError
    from audit.gate.between import between
    from audit.report.series import MARK, Listed, series_page
    from audit.results import read_results
    from audit.storage.own_files import check_own, write_own

    twice = [path for place, path in enumerate(results) if path.resolve() in {one.resolve() for one in results[:place]}]
    if twice:
        raise ConfigError(f"'{twice[0]}' is named twice: name every audit of the series once.")
    check_own(out, MARK)
    audits = [
        Listed(name, read_results(path), _link(path.with_name("report.html"), out))
        for name, path in zip(folder_names(results), results, strict=True)
    ]
    write_own(out, series_page(audits, between))
    return out


def _link(report: Path, page: Path) -> str | None:
    """Return where a report lies, seen from the page; None where there is none."""
    if not report.is_file():
        return None
    return quote(Path(os.path.relpath(report.resolve(), page.resolve().parent)).as_posix())
