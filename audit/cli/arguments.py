"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option("--out", help="folder for the outputs")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="configuration file")]
