"""`init`, `doctor` and `estimate`: what comes before an audit."""

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from audit.cli.arguments import CacheOption, ConfigFile, Quick, Standard, Thorough, cache_folder, chosen_effort
from audit.runtime.terminal import say, show


def init(
    data: Annotated[
        str | None, typer.Argument(metavar="[FOLDER]", help="images: a folder, CSV manifest, .zip, .npz, or phantom")
    ] = None,
    checkpoints: Annotated[
        list[str] | None, typer.Argument(metavar="[CHECKPOINT]...", help="files or folders of trained classifiers")
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="file to write")] = Path("audit.toml"),
) -> None:
    """Look at images and checkpoints, write a commented audit.toml and gate.toml; asks and overwrites nothing."""
    from audit.errors import ConfigError
    from audit.gate.policy import first_policy
    from audit.pipeline.draft import draft

    if out.exists():
        raise ConfigError(f"'{out}' is there already, and nothing is written over: name another file with --out.")
    found = draft(data, checkpoints or (), out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("x", encoding="utf-8") as file:
        file.write(found.text)
    say(f"Written: {out}")
    policy = out.with_name("gate.toml")
    if policy.exists():
        say(f"Left as it is: {policy}")
    else:
        with policy.open("x", encoding="utf-8") as file:
            file.write(first_policy())
        say(f"Written: {policy}")
    for point in found.open_points:
        say(f"To fill in: {point}")
    for point in found.unseen:
        say(f"To check: {point}")
    quoted = shlex.quote(str(out))
    say(f"Next: spruce-audit doctor {quoted} && spruce-audit run {quoted} --quick --out report")
    say(f"Then: spruce-audit gate report/results.json --policy {shlex.quote(str(policy))}")


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
    for check in examine(config, cache_folder(cache)):
        say(f"{check.state:<4}  {check.subject}: {check.text}")
        mend += check.state == "mend"
    if mend:
        say(f"spruce-audit: {mend} to mend.", err=True)
        raise typer.Exit(2)


def estimate(config: ConfigFile, quick: Quick = False, standard: Standard = False, thorough: Thorough = False) -> None:
    """Say how long an audit takes at most and in how much memory, from a few measured steps; writes nothing."""
    from audit.pipeline.runner import estimate_audit
    from audit.runtime.progress import duration

    found = estimate_audit(config, chosen_effort(quick, standard, thorough))
    table = Table()
    table.add_column("stage")
    table.add_column("at most", justify="right")
    for stage, seconds in found.seconds.items():
        table.add_row(stage, duration(seconds))
    show(table)
    say(found.sentence())
