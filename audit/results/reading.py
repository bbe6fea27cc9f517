"""`results.json` from a file, and its JSON Schema."""

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from audit.errors import ResultsError
from audit.results.whole import SCHEMA_VERSION, AuditResult


def json_schema() -> dict[str, Any]:
    """JSON Schema of `results.json`, as shipped in `audit/results.schema.json`."""
    schema = AuditResult.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def read_results(path: str | Path) -> AuditResult:
    """Read a `results.json`; raises ResultsError naming file and remedy if missing, broken or of another major."""
    file = Path(path)
    if not file.is_file():
        raise ResultsError(f"Results file '{file}' does not exist: run `spruce-audit run` first or check the path.")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # a number of 5000 digits is no JSONDecodeError
        raise ResultsError(f"Results file '{file}' is not valid JSON ({error}): run the audit again.") from None
    version = str(values.get("schema_version", "")) if isinstance(values, dict) else ""
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise ResultsError(
            f"Results file '{file}' has schema version '{version or 'none'}' where {SCHEMA_VERSION} is read: "
            "run the audit again with this version of spruce-audit."
        )
    try:
        return AuditResult.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ResultsError(f"Results file '{file}' is not valid at '{where}': {first['msg']}.") from None
