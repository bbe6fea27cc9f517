"""The commands `spruce-audit generator inspect|convert|sample`: describe a generator file, convert it, draw from it.

None of them runs code that a file contains. `inspect` also describes a pickle that is refused: the names that it asks
for show why.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from audit.errors import GeneratorError
from audit.generator.files.contents import existing, printable
from audit.generator.files.load import LoadedStyleGAN2, load_generator, open_generator, resolve, save_generator
from audit.generator.grid import PNG_MARK, sample_grid, save_grid, square_columns
from audit.storage.files import hash_file
from audit.storage.own_files import check_own
from audit.storage.tensors.file_bytes import Budget, Foreign, Refused, Window
from audit.storage.tensors.harmless import harmful
from audit.storage.tensors.plain_pickle import Name
from audit.storage.tensors.sources import open_archive

MAX_SAMPLES = 10_000
HASHED = 2**30
"""Bytes up to which a file is hashed before it is known to be of use."""
LISTED, SHOWN, DEEP = 200, 100_000, 50
"""Globals, characters of an entry of the metadata and levels of it that are shown."""


def inspect_generator(path: str | Path) -> dict[str, Any]:
    """Describe a generator file as plain JSON data: what it is, what it draws, and what its pickle asks for.

    A file that is refused is described too, with the reason under `refused`. Raises GeneratorError if there is no file.
    """
    file = resolve(path)
    found: dict[str, Any] = {"file": str(path), "format": "unknown"}
    try:
        existing(file)
        found["bytes"] = file.stat().st_size
        with file.open("rb") as opened:
            window = Window.of(opened)
            if window.size <= HASHED:
                found["sha256"] = hash_file(file)
            archive = open_archive(window, Budget())
        if archive is not None:
            found["format"] = "torch"
            found["globals"] = _listed(archive.content.globals)
            found["globals_refused"] = _listed(harmful(archive.content))
        loaded = open_generator(file)
    except Refused as error:
        kind = {"format": error.kind} if isinstance(error, Foreign) else {}
        return found | kind | {"refused": str(error)}
    return found | {"sha256": loaded.sha256} | _described(loaded)


def _listed(names: Iterable[Name]) -> list[str]:
    """Names in order, as many as a reader can use."""
    full = sorted(".".join(name) for name in names)
    more = [f"and {len(full) - LISTED} more"] if len(full) > LISTED else []
    return full[:LISTED] + more


def _described(loaded: LoadedStyleGAN2) -> dict[str, Any]:
    g, d = loaded.generator, loaded.discriminator
    return {
        "format": loaded.format,
        "resolution": g.resolution,
        "channels": g.channels,
        "classes": g.c_dim,
        "generator": {"parameters": _size(g), **g.settings},
        "discriminator": None if d is None else {"parameters": _size(d), **d.settings},
        "notes": list(loaded.notes),
        "metadata": {k: _parsed(v) for k, v in loaded.metadata.items() if k not in ("generator", "discriminator")},
    }


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _parsed(text: str) -> Any:
    """A file's own words as JSON where they are, unless they are too long or too deep to be shown."""
    if len(text) > SHOWN:
        return f"{text[:200]}... ({len(text)} characters)"
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > DEEP:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def as_lines(described: dict[str, Any]) -> list[str]:
    """Lines of `key: value` for a terminal, from what `inspect_generator` returns."""
    lines = []
    for key, value in described.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} = {json.dumps(v) if isinstance(v, dict) else v}" for k, v in value.items())
        elif isinstance(value, list):
            value = ", ".join(value) or "none"
        elif value is None:
            value = "none"
        lines.append(f"{key.replace('_', ' ')}: {printable(str(value))}")
    return lines


def convert_generator(path: str | Path, out: Path) -> Path:
    """Write the generator in any supported file to `out` in our format, saying its origin; raises GeneratorError."""
    if out.suffix != ".safetensors":
        raise GeneratorError(f"The converted generator is a safetensors file: name --out '{out}' with that ending.")
    if out.exists() and resolve(path).exists() and out.samefile(resolve(path)):
        raise GeneratorError(f"'{out}' is the file to convert: name another file by --out.")
    check_own(out, "spruce-audit generator")
    loaded = load_generator(path)
    kept = {k: v for k, v in loaded.metadata.items() if k not in ("format", "generator", "discriminator")}
    source = {"file": Path(path).name, "format": loaded.format, "sha256": loaded.sha256, "notes": list(loaded.notes)}
    save_generator(out, loaded.generator, loaded.discriminator, kept | {"converted_from": source})
    return out


def sample_generator(
    path: str | Path, out: Path, n: int = 16, seed: int = 0, truncation: float = 0.7, label: int | None = None
) -> Path:
    """Write a PNG of `n` images that the generator in `path` draws, nearly square; raises GeneratorError."""
    if not 1 <= n <= MAX_SAMPLES:
        raise GeneratorError(f"--n is {n}: choose 1 to {MAX_SAMPLES} images.")
    check_own(out, PNG_MARK)
    g = load_generator(path).generator
    if label is not None and not 0 <= label < g.c_dim:
        classes = f"its classes are 0 to {g.c_dim - 1}" if g.c_dim else "it has no classes: leave --class out"
        raise GeneratorError(f"Generator '{path}' cannot draw class {label}: {classes}.")
    save_grid(sample_grid(g, n, square_columns(n), seed, truncation, label), out)
    return out
