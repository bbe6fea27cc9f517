"""`store ...`: what audits have kept of earlier work."""

import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from audit.cli.arguments import CacheOption, CacheSize, cache_folder, size_in_bytes
from audit.runtime.terminal import say, show

if TYPE_CHECKING:
    from audit.storage.cache import Store

app = typer.Typer(no_args_is_help=True, help="Results of stages that audits keep: list, show, bound, check.")


def _store(cache: Path | None) -> "Store":
    from audit.errors import ConfigError
    from audit.storage.cache import Store

    folder = cache_folder(cache)
    if not folder.is_dir():
        raise ConfigError(f"There is no store in '{folder}': name its folder with --cache, or run an audit first.")
    return Store(folder)


def _mb(size: int) -> str:
    return f"{size / 1e6:,.1f}"


@app.command("ls")
def list_command(
    cache: CacheOption = None,
    stage: Annotated[str | None, typer.Option("--stage", help="show the entries of this stage one by one")] = None,
) -> None:
    """Show what is kept: entries, size and last use by stage."""
    store = _store(cache)
    rows = defaultdict(list)
    for one in store.entries():
        seen = store.description(one.key)
        rows["(damaged)" if seen is None else seen["stage"]].append(one)
    table = Table()
    for heading in ("stage", "entries", "MB", "last used") if stage is None else ("key", "MB", "last used"):
        table.add_column(heading, justify="right" if heading in ("entries", "MB") else "left", no_wrap=True)

    def day(used: float) -> str:
        return time.strftime("%Y-%m-%d %H:%M", time.localtime(used))

    if stage is None:
        for name, found in sorted(rows.items()):
            size, used = sum(one.bytes for one in found), max(one.used for one in found)
            table.add_row(Text(name), str(len(found)), _mb(size), day(used))
    else:
        for one in sorted(rows.get(stage, []), key=lambda one: -one.used):
            table.add_row(one.key, _mb(one.bytes), day(one.used))
    show(table)
    entries = [one for found in rows.values() for one in found]
    say(f"{len(entries)} entries, {_mb(sum(one.bytes for one in entries))} MB in {store.root}")


@app.command("show")
def show_command(
    key: Annotated[str, typer.Argument(metavar="KEY", help="an entry's key or its beginning, as ls --stage shows it")],
    cache: CacheOption = None,
) -> None:
    """Show one entry: its stage, the version that wrote it, and its tensors."""
    from audit.errors import ConfigError

    store = _store(cache)
    found = [one for one in store.entries() if one.key.startswith(key)]
    if len(found) != 1:
        raise ConfigError(f"{len(found) or 'No'} entries of '{store.root}' begin with '{key}': give the key of one.")
    seen = store.description(found[0].key)
    if seen is None:
        raise ConfigError(f"'{store.path(found[0].key)}' is damaged: `spruce-audit store verify` sets it aside.")
    say(f"{store.path(found[0].key)}\nstage: {seen['stage']}\nversion: {seen['version']}\nbytes: {found[0].bytes}")
    for name, (kind, *shape) in sorted(seen["tensors"].items()):
        say(f"tensor {name}: {kind} {shape}")


@app.command("gc")
def collect_command(cache: CacheOption = None, size: CacheSize = "20GB") -> None:
    """Remove what killed writers left, and the entries used longest ago above a size; audits may run meanwhile."""
    store = _store(cache)
    done = store.collect(size_in_bytes(size))
    say(f"{done.entries} entries removed, {_mb(done.bytes)} MB; {_mb(done.left)} MB are left in {store.root}")


@app.command("verify")
def verify_command(cache: CacheOption = None) -> None:
    """Compare every entry with its hash and set damaged ones aside; exit status 2 if there are any."""
    store = _store(cache)
    whole, damaged = store.verify()
    say(f"{whole} entries are whole, {len(damaged)} were damaged and set aside in {store.root}")
    if damaged:
        raise typer.Exit(2)
