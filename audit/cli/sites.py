"""`share` and `merge`: results that may leave a site, and audits of several sites as one."""

from pathlib import Path
from typing import Annotated

import typer

from audit.cli.arguments import Out, folder_names
from audit.runtime.terminal import say


def share(
    results: Annotated[Path, typer.Argument(metavar="RESULTS.json")],
    out: Annotated[Path | None, typer.Option("--out", help="default: results-minimal.json beside")] = None,
) -> None:
    """Write results without images, ids, paths and rows of single images, which `merge` accepts."""
    from audit.pipeline.sites.share import write_minimal
    from audit.storage.output import MINIMAL_FILE, record

    target = results.with_name(MINIMAL_FILE) if out is None else out
    write_minimal(results, target)
    record(target)
    say(target)


def merge(
    results: Annotated[list[Path], typer.Argument(metavar="SITE/RESULTS.json ...")],
    out: Out = Path("merged"),
) -> None:
    """Join audits of the same models, made at several sites, into one: results and report."""
    from audit.pipeline.sites.merge import merge as join
    from audit.pipeline.writing import write_audit
    from audit.results import read_results
    from audit.runtime.environment import Stopwatch
    from audit.storage.output import open_output

    named = dict(zip(folder_names(results), results, strict=True))
    joined = join({name: read_results(path) for name, path in named.items()})
    with open_output(out, {f"the results of '{name}'": path for name, path in named.items()}) as output:
        write_audit(joined, output, lambda _: None, Stopwatch())
        say(output.folder / "report.html")
