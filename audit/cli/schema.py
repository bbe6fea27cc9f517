"""`schema`: the JSON Schemas, for editors."""

from typing import Annotated, Literal

import typer

from audit.runtime.terminal import say


def schema(what: Annotated[Literal["config", "results", "gate"], typer.Argument(help="whose schema to print")]) -> None:
    """Print the JSON Schema of a configuration (for editors), of results.json, or of `spruce-audit gate --json`."""
    import json

    from audit.config import AuditConfig
    from audit.gate.render import gate_schema
    from audit.results import json_schema

    schemas = {"config": AuditConfig.model_json_schema, "results": json_schema, "gate": gate_schema}
    say(json.dumps(schemas[what](), indent=2, ensure_ascii=False))
