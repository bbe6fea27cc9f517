"""`schema` prints what files are read by."""

import json
import tomllib

import jsonschema
import pytest

from audit.data.demo import demo_config
from audit.results import json_schema


def test_schemas_are_those_that_files_are_read_by(run):
    demo = tomllib.loads(demo_config().read_text())
    jsonschema.validate(demo, json.loads(run("schema", "config")[1]))
    with pytest.raises(jsonschema.ValidationError, match="nonsense"):
        jsonschema.validate(demo | {"nonsense": 1}, json.loads(run("schema", "config")[1]))
    assert json.loads(run("schema", "results")[1]) == json_schema()
