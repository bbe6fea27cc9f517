"""The results file: shipped schema, round trip, and one clear sentence for a file that cannot be read."""

import json
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest

import audit
from audit.errors import ResultsError
from audit.results import AuditResult, json_schema, read_results

SCHEMA = Path(audit.__file__).parent / "results.schema.json"


def test_shipped_schema_is_the_one_the_code_generates():
    expected = json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
    assert SCHEMA.read_text(encoding="utf-8") == expected, "write results.json_schema() to audit/results.schema.json"


def test_schema_is_valid_and_accepts_a_complete_audit(support_results: ModuleType, tmp_path: Path):
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)
    for n in (2, 0):
        values = support_results.example_audit(tmp_path, n_queries=n, size=16).model_dump(mode="json")
        jsonschema.Draft202012Validator(schema).validate(values)
        values["models"][0]["clean"]["acuracy"] = 1.0
        with pytest.raises(jsonschema.ValidationError, match="acuracy"):
            jsonschema.Draft202012Validator(schema).validate(values)


def test_results_survive_the_round_trip(support_results: ModuleType, tmp_path: Path):
    results = support_results.example_audit(tmp_path, n_queries=2, size=16)
    assert read_results(support_results.write_audit(tmp_path, results)) == results


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("[]", "schema version 'none'"),
        ('{"schema_version": "9.0"}', "schema version '9.0'"),
        ('{"schema_version": "1.0"}', "not valid at 'name'"),
    ],
)
def test_unreadable_files_name_the_trouble(tmp_path: Path, text: str, words: str):
    file = tmp_path / "results.json"
    file.write_text(text)
    with pytest.raises(ResultsError, match=words) as caught:
        read_results(file)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path):
    with pytest.raises(ResultsError, match="does not exist"):
        read_results(tmp_path / "results.json")


def test_a_later_minor_version_is_read(support_results: ModuleType, tmp_path: Path):
    results: AuditResult = support_results.example_audit(tmp_path, n_queries=0)
    file = support_results.write_audit(tmp_path, results.model_copy(update={"schema_version": "1.7"}))
    assert read_results(file).schema_version == "1.7"
