"""`generator ...`: look into generator files, convert them and draw from them."""

from pathlib import Path
from typing import Annotated

import typer

from audit.runtime.terminal import say

app = typer.Typer(no_args_is_help=True, help="Look into generator files of any kind; runs no code they hold.")


def _note_spelling(value: str) -> str:
    from audit.config import note_on_spelling

    if (note := note_on_spelling(value)) is not None:
        say(f"Note: {note}", err=True)
    return value


GeneratorFile = Annotated[
    str,
    typer.Argument(
        metavar="FILE",
        help="safetensors, a .pt of torch (rosinality's too), a StyleGAN2-ADA .pkl, or shipped:NAME",
        callback=_note_spelling,
    ),
]


@app.command("inspect")
def inspect_generator_command(
    file: GeneratorFile,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say what FILE is: format, architecture, parameters, hash, metadata, and the globals that a pickle asks for."""
    import json

    from audit.generator.commands import as_lines, inspect_generator

    found = inspect_generator(file)
    say(json.dumps(found, indent=2) if as_json else "\n".join(as_lines(found)))
    if "refused" in found:
        raise typer.Exit(2)


@app.command("convert")
def convert_generator_command(
    file: GeneratorFile, out: Annotated[Path, typer.Option("--out", help="safetensors file to write")]
) -> None:
    """Write the generator in FILE in our format, with its discriminator where it has one."""
    from audit.generator.commands import convert_generator
    from audit.generator.files.load import load_generator

    say(convert_generator(file, out))
    for note in load_generator(out).notes:
        say(f"Note: {note}", err=True)


@app.command("sample")
def sample_generator_command(
    file: GeneratorFile,
    out: Annotated[Path, typer.Option("--out", help="PNG file to write")],
    n: Annotated[int, typer.Option("--n", help="number of images")] = 16,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    truncation: Annotated[
        float, typer.Option("--truncation", min=0, max=2, help="0 is the mean image, 1 the whole variety")
    ] = 0.7,
    label: Annotated[int | None, typer.Option("--class", help="class to draw; default: all in turn")] = None,
) -> None:
    """Draw a grid of images; the same seed gives the same images."""
    from audit.generator.commands import sample_generator

    say(sample_generator(file, out, n, seed, truncation, label))
