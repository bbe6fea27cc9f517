"""TOML to a schema: a mistake is one sentence with the file, the line, the key and the nearest known one."""

import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from audit.config.section import Section
from audit.errors import ConfigError

S = TypeVar("S", bound=Section)

Location = Sequence[str | int]
"""Keys and places in lists that lead to a value of a configuration; pydantic also puts names of types among them."""


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The table that a field of this annotation holds, if it holds one or several."""
    candidates = [annotation, *get_args(annotation)]
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _tables(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield every table of the file that `model` describes, as its path and its keys."""
    yield path, list(model.model_fields)
    for name, field in model.model_fields.items():
        if (inner := _inner(field.annotation)) is not None:
            yield from _tables(inner, (*path, name))


def _hint(model: type[BaseModel], path: Location) -> str:
    """What to do about the unknown key that `path` ends with."""
    keys = [part for part in path if isinstance(part, str)]
    known = dict(_tables(model))
    valid = known.get(tuple(keys[:-1]), [])
    if near := difflib.get_close_matches(keys[-1], valid, n=1, cutoff=0.6):
        return f"did you mean '{near[0]}'?"
    homes = [".".join(table) for table, names in known.items() if keys[-1] in names]
    if len(homes) == 1:
        return f"it is a key of {f'[{homes[0]}]' if homes[0] else 'the top of the file'}, move it there."
    return f"remove it, or write one of {', '.join(valid)}." if valid else "remove it."


def _at(values: Any, path: Location) -> Any:
    """The value at `path`; raises LookupError or TypeError if there is none."""
    for part in path:
        values = values[part]
    return values


def _known_part(values: Any, path: Location) -> Location:
    """The longest part of `path` from its beginning at which there is a value."""
    for end in range(len(path), 0, -1):
        with suppress(LookupError, TypeError):
            _at(values, path[:end])
            return path[:end]
    return ()


def _line_of(text: str, path: Location) -> int | None:
    """The line of a TOML file at which the value at `path` begins: the first up to which the file holds it.

    tomllib tells no places; but what stands before the end of a statement is TOML, too.
    """
    keys = [part for part in path if isinstance(part, str)]
    lines = text.split("\n")

    def is_there(number: int) -> bool:
        for end in range(number, len(lines) + 1):
            with suppress(tomllib.TOMLDecodeError):
                return len(_known_part(tomllib.loads("\n".join(lines[:end])), path)) == len(path)
        return False

    return next((n for n, line in enumerate(lines, 1) if keys and keys[-1] in line and is_there(n)), None)


def _sentence(error: ValidationError, model: type[BaseModel], values: Mapping[str, Any], source: str, text: str) -> str:
    first = error.errors()[0]
    path, there = tuple(first["loc"]), _known_part(values, first["loc"])
    line = _line_of(text, there)
    if line is not None:
        source = f"{source}, line {line}"
    if first["type"] == "extra_forbidden":
        where = ".".join(map(str, path))
        if len(path) == 1 and issubclass(model, Section) and path[0] in model.replaced:
            return f"Key '{where}' in {source} is of an earlier version: {model.replaced[str(path[0])]}."
        return f"Unknown key '{where}' in {source}: {_hint(model, path)}"
    if first["type"] == "missing":
        return f"Key '{'.'.join(map(str, path))}' is missing in {source}: add it."
    where = ".".join(map(str, there or path)) or "the file"
    message = first["msg"].removeprefix("Value error, ")
    return f"Key '{where}' in {source}{'' if line is None else ','} is not valid: {message}."


def parse_config(model: type[S], values: Mapping[str, Any], source: str, text: str = "") -> S:
    """Validate `values` as `model`; raises ConfigError with one sentence naming key, place and remedy.

    `text` is the TOML that the values come from, if any: the sentence then names the line, too.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_sentence(error, model, values, source, text)) from None


def _read(path: str | Path) -> tuple[dict[str, Any], str]:
    """Read a TOML file: its values and its text. Raises ConfigError."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"Configuration file '{file}' does not exist: check the path.")
    try:
        text = file.read_text(encoding="utf-8-sig")
        return tomllib.loads(text), text
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"Configuration file '{file}' is not valid TOML: {error}.") from None


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file; raises ConfigError if it is missing or not TOML."""
    return _read(path)[0]


def read_config(model: type[S], path: str | Path, **changes: Any) -> S:
    """Read a TOML file as `model`, with `changes` of its keys; raises ConfigError naming file, line, key and remedy."""
    values, text = _read(path)
    return parse_config(model, values | changes, f"'{path}'", text)
