"""Arguments and options that several commands take."""

import os
from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option("--out", help="folder for the outputs")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="configuration file")]
CacheOption = Annotated[
    Path | None, typer.Option("--cache", help="folder that keeps inversions and counterfactuals between runs")
]


def default_cache() -> Path:
    """Where inversions and counterfactuals are kept unless another folder is named."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "spruce-audit"
