"""`init`, `doctor` and `estimate`: what comes before an audit."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from audit.cli.arguments import CacheOption, default_cache
from audit.runtime.terminal import say


def init(
    data: Annotated[
        str | None, typer.Argument(metavar="[FOLDER]", help="images: a folder, CSV manifest, .zip, .npz, or phantom")
    ] = None,
    checkpoints: Annotated[
        list[str] | None, typer.Argument(metavar="[CHECKPOINT]...", help="files or folders of trained classifiers")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="file to write")] = Path("audit.toml"),
) -> None:
    """Look at images and checkpoints and write a commented audit.toml; asks nothing and overwrites nothing."""
    from audit.errors import ConfigError
    from audit.pipeline.draft import draft

    if out.exists():
        raise ConfigError(f"'{out}' is there already, and nothing is written over: name another file with --out.")
    found = draft(data, checkpoints or (), out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("x", encoding="utf-8") as file:
        file.write(found.text)
    say(f"Written: {out}")
    for point in found.open_points:
        say(f"To fill in: {point}")
    quoted = shlex.quote(str(out))
    say(f"Next: spruce-audit doctor {quoted} && spruce-audit run {quoted} --quick --out report")


def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG.toml]", help="an audit whose data and models are looked at as well"),
    ] = None,
    cache: CacheOption = None,
) -> None:
    """Check installation, device, memory, disk and weights, and say what to mend; exit status 2 if anything is."""
    from audit.pipeline.doctor import examine

    mend = 0
    for check in examine(config, cache or default_cache()):
        say(f"{check.state:<4}  {check.subject}: {check.text}")
        mend += check.state == "mend"
    if mend:
        say(f"spruce-audit: {mend} to mend.", err=True)
        raise typer.Exit(2)
