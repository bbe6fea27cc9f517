"""`schema`: the JSON Schemas, for editors."""

from typing import Annotated, Literal

import typer

from audit.runtime.terminal import say


def schema(what: Annotated[Literal["config", "results"], typer.Argument(help="whose schema to print")]) -> None:
    """Print the JSON Schema of a configuration (for editors) or of results.json."""
    import json

    from audit.config import AuditConfig
    from audit.results import json_schema

    say(
        json.dumps(AuditConfig.model_json_schema() if what == "config" else json_schema(), indent=2, ensure_ascii=False)
    )
