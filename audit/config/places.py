"""What a text that says where something lies can be: a path, shipped weights, a container, an import path, a word."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from audit.errors import ConfigError

SHIPPED = ("phantom", "plain", "plain-again", "trades", "trades-small", "shortcut", "shortcut-again")
_FORMER_PREFIX = "embedded:"


def is_shipped(value: str) -> bool:
    """Whether `value` is `shipped:NAME`, weights inside the package; `embedded:NAME`, as earlier versions say, too."""
    return value.startswith(("shipped:", _FORMER_PREFIX))


def note_on_spelling(*values: str | None) -> str | None:
    """Return a sentence on those of `values` that name shipped weights as earlier versions do; None: none does."""
    former = [value for value in values if value is not None and value.startswith(_FORMER_PREFIX)]
    if not former:
        return None
    return f"'embedded:' is called 'shipped:' now: write 'shipped:{former[0].removeprefix(_FORMER_PREFIX)}'."


def _shipped_or_path(value: str) -> str:
    if is_shipped(value) and value.partition(":")[2] not in SHIPPED:
        raise ValueError(f"'{value}' is not one of the shipped weights: {', '.join('shipped:' + n for n in SHIPPED)}")
    return value


Weights = Annotated[str, AfterValidator(_shipped_or_path)]
"""A file path, or `shipped:NAME` for weights shipped inside the package."""


_CONTAINER = re.compile(r"([a-z][a-z0-9]+(?:-[a-z0-9]+)*):(.+)")
"""A kind of container before what it holds; no drive of Windows, whose name is one letter."""


def container_of(value: str | None) -> tuple[str, str] | None:
    """Split `hf:FOLDER` or `torchvision:NAME` into the kind and what stands behind it; None where no kind is named."""
    found = _CONTAINER.fullmatch(value or "")
    return None if found is None else (found[1], found[2])


def is_embedding_file(value: str) -> bool:
    """Whether `value`, which names an embedding, is the file of a domain embedding and not a word."""
    return value.endswith(".safetensors")


def resolve_path(value: str, base: Path) -> str:
    """Make a path of a configuration absolute, relative to the folder `base`; a name that is not a path stays.

    Names are `shipped:NAME`, 'phantom' and `package.module:factory`; `folder/file.py:factory` is a path. Raises
    ConfigError for what can be none.
    """
    if is_shipped(value) or value == "phantom":
        return value
    head, _, attribute = value.rpartition(":")
    if attribute.isidentifier() and head:
        return f"{resolve_path(head, base)}:{attribute}" if head.endswith(".py") else value
    try:
        return str((base / Path(value).expanduser()).resolve())
    except (ValueError, RuntimeError) as error:  # a NUL in it; a home folder of nobody
        raise ConfigError(f"'{value}' cannot be a path ({error}): correct it.") from None


def embedding_path(value: str, base: Path) -> str:
    """Make the file of an embedding absolute, relative to the folder `base`; a word stays."""
    return resolve_path(value, base) if is_embedding_file(value) else value
