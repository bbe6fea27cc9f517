"""docs/configuration.md from the schemas. To write it again: `python tests/support_configuration.py`."""

import types
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from audit.config import AuditConfig, DataConfig, Training
from audit.gate.policy import Policy
from audit.training.classifier.config import ClassifierTrainConfig, FactorsTrainConfig
from audit.training.embedding.config import EmbeddingTrainConfig
from audit.training.encoder.train import EncoderTrainConfig
from audit.training.generator.config import GeneratorTrainConfig
from audit.training.generator.mapping_config import FitMappingConfig

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"

FILES: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("audit.toml", "spruce-audit run", AuditConfig),
    ("gate.toml", "spruce-audit gate --policy", Policy),
    ("classifier.toml", "spruce-audit train classifier", ClassifierTrainConfig),
    ("generator.toml", "spruce-audit train generator", GeneratorTrainConfig),
    ("mapping.toml", "spruce-audit train mapping", FitMappingConfig),
    ("encoder.toml", "spruce-audit train encoder", EncoderTrainConfig),
    ("embedding.toml", "spruce-audit train embedding", EmbeddingTrainConfig),
    ("factors.toml", "spruce-audit train factors", FactorsTrainConfig),
)
"""A file, the command that reads it, and its schema."""

INTRODUCTION = """\
# Configuration

Every key of every file that a command reads, with what it may be and its default. This page is made from the schemas by
`python tests/support_configuration.py`.

Files are TOML. Relative paths are relative to the file that names them. An unknown key is an error that names its line
and the nearest known key. Radii (`eps`) are in pixel units of images in [0, 1] and may be written as a fraction,
`"8/255"`. An optional table of `[robustness]` may also be switched on with its defaults, or off: `distance = true`,
`trust = false`.
"""


def table_of(field: FieldInfo) -> type[BaseModel] | None:
    """The schema of the table that `field` holds (one, none or several of it), if it holds tables."""
    candidates = [field.annotation, *get_args(field.annotation)]
    found = [one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)]
    return found[0] if found else None


def is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bounds(schema: dict[str, Any]) -> str:
    words = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return ", ".join(f"{sign} {schema[key]:g}" for key, sign in words.items() if key in schema)


def _kind(schema: dict[str, Any]) -> str:
    """What a value may be, from its JSON schema."""
    if "anyOf" in schema:
        kinds = [_kind(one) for one in schema["anyOf"] if one.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "const" in schema or "enum" in schema:
        return ", ".join(f"`{_toml(one)}`" for one in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "array":
            inside = schema.get("items") or schema.get("prefixItems", [{}])[0]
            return f"list of {_kind(inside)}"
        case "object":
            return "table"
        case "integer":
            return f"whole number {_bounds(schema)}".strip()
        case "number":
            return f"number {_bounds(schema)}".strip()
        case "boolean":
            return "true, false"
        case _:
            return "text"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    return "" if default is None or default == {} else f"`{_toml(default)}`"


def _rows(model: type[BaseModel]) -> list[str]:
    properties = model.model_json_schema()["properties"]
    rows = []
    for name, field in model.model_fields.items():
        if table_of(field) is None:
            cells = (f"`{name}`", _kind(properties[name]), _default(field), field.description or "")
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return ["| key | value | default | meaning |", "|---|---|---|---|", *rows, ""] if rows else []


def _about(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")


def _tables(model: type[BaseModel], path: str) -> list[str]:
    """The page's part on the table at `path`, and on those within it."""
    lines = _rows(model)
    for name, field in model.model_fields.items():
        inner = table_of(field)
        if inner is None or (inner is DataConfig and model is not AuditConfig):
            continue
        where = f"{path}.{name}" if path else name
        off = "Optional. " if types.NoneType in get_args(field.annotation) else ""
        note = f" {field.description[0].upper()}{field.description[1:]}." if field.description else ""
        heading = f"[[{where}]]" if is_list(field) else f"[{where}]"
        lines += [f"### `{heading}`", "", f"{off}{_about(inner)}{note}", "", *_tables(inner, where)]
    return lines


def page() -> str:
    """The whole page."""
    lines = [INTRODUCTION]
    for file, command, model in FILES:
        data = " Its table `[data]` is that of [audit.toml](#data)." if issubclass(model, Training) else ""
        lines += [f"## {file}", "", f"Read by `{command}`. {_about(model)}{data}", "", *_tables(model, "")]
    return "\n".join(lines).rstrip() + "\n"


def undescribed() -> list[str]:
    """Keys whose meaning the schema does not say."""

    def of(model: type[BaseModel], path: str) -> list[str]:
        keys = []
        for name, field in model.model_fields.items():
            inner = table_of(field)
            if inner is not None:
                keys += of(inner, f"{path}.{name}")
            elif not field.description:
                keys.append(f"{path}.{name}")
        return keys

    return [key for file, _, model in FILES for key in of(model, file)]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
