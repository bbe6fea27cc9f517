"""`weights ...`: pretrained networks from outside."""

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from audit.runtime.terminal import say, show

app = typer.Typer(no_args_is_help=True, help="Pretrained networks from outside: what is there, fetch, check.")


@app.command("list")
def list_weights_command() -> None:
    """Show the networks that metrics can use: purpose, licence, size of a download, and where they are."""
    from audit.storage.pretrained import NETWORKS, find

    table = Table()
    for heading in ("name", "use", "licence", "MB", "there"):
        table.add_column(heading, justify="right" if heading == "MB" else "left", no_wrap=heading == "name")
    places = []
    for network in NETWORKS.values():
        there = find(network.name)
        forms = network.forms if there is None else (there[0],)
        sizes = " or ".join(f"{sum(file.size for file in form.files) / 1e6:.0f}" for form in forms)
        there_or_not = "absent" if there is None else "present"
        table.add_row(*(Text(cell) for cell in (network.name, network.use, network.licence, sizes, there_or_not)))
        places += [f"{network.name}: {path}" for path in (there[1] if there else ())]
    show(table)
    # Below the table, where a long path stays in one piece.
    say("\n".join(places) or "None is there; `spruce-audit weights pull` fetches them.")


@app.command("pull")
def pull_weights_command(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME...")] = None,
    every: Annotated[bool, typer.Option("--all", help="every network of the list")] = False,
    source: Annotated[
        Path | None, typer.Option("--from", help="take files or archives from this folder; nothing is downloaded")
    ] = None,
) -> None:
    """Fetch networks, check their SHA-256 and place them; an interrupted download goes on where it was."""
    from audit.storage.pretrained import NETWORKS, pull

    if bool(names) == every:
        raise typer.BadParameter("give the names of networks, or --all")
    for name, paths in pull(tuple(NETWORKS) if every else tuple(names or ()), source).items():
        say(f"{name}: {', '.join(map(str, paths))}")


@app.command("verify")
def verify_weights_command(names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...")] = None) -> None:
    """Hash the files again; with NAME they have to be there. Exit status 2 if one is not the registered one."""
    from audit.storage.pretrained import verify

    for name, paths in verify(names or ()).items():
        say(f"{name}: {'absent' if paths is None else 'sound, ' + ', '.join(map(str, paths))}")
