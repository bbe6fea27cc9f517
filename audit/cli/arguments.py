"""Arguments and options that several commands take."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from audit.config import Effort

Out = Annotated[Path, typer.Option("--out", help="folder for the outputs")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="configuration file")]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="folder that keeps the results of stages between runs, for all audits")
]
CacheSize = Annotated[
    str,
    typer.Option(
        "--cache-size",
        envvar="SPRUCE_AUDIT_CACHE_SIZE",
        help="most that the cache may hold; what was used longest ago is removed",
    ),
]
Quick = Annotated[bool, typer.Option("--quick", help="fewer images and attack steps, for a first look")]
Standard = Annotated[bool, typer.Option("--standard", help="the defaults, whatever effort the file names")]
Thorough = Annotated[bool, typer.Option("--thorough", help="more images and attack steps")]


def chosen_effort(quick: bool, standard: bool, thorough: bool) -> "Effort | None":
    """Return the effort that an option asks for; raises BadParameter for two."""
    asked: dict[Effort, bool] = {"quick": quick, "standard": standard, "thorough": thorough}
    chosen = [effort for effort, given in asked.items() if given]
    if len(chosen) > 1:
        raise typer.BadParameter(f"--{chosen[0]} and --{chosen[1]} exclude each other")
    return chosen[0] if chosen else None


def cache_folder(named: Path | None) -> Path:
    """Return the folder of the cache: the one `named`, else the user's own."""
    base = os.environ.get("XDG_CACHE_HOME")
    return named.expanduser() if named else (Path(base) if base else Path.home() / ".cache") / "spruce-audit"


def size_in_bytes(size: str) -> int:
    """Return the number of bytes that a text such as `20GB` stands for."""
    from pydantic import TypeAdapter, ValidationError

    from audit.config import Memory, memory_bytes

    try:
        return memory_bytes(TypeAdapter(Memory).validate_python(size))
    except ValidationError:
        raise typer.BadParameter(f"--cache-size is '{size}' where an amount such as 20GB is expected") from None


def folder_names(results: Sequence[Path]) -> list[str]:
    """Return a name for each of some results: the last folder by which they differ, with more before it if needed."""
    folders = [path.resolve().parent.parts for path in results]
    while len(set(folders)) > 1 and len({parts[-1:] for parts in folders}) == 1:
        folders = [parts[:-1] for parts in folders]
    for depth in range(1, max(map(len, folders), default=1) + 1):
        names = ["/".join(parts[-depth:]) for parts in folders]
        if len(set(names)) == len(names):
            return names
    return [f"{path.resolve().parent.name}/{path.stem}" for path in results]
