"""Names of models, classes, images and audits that try to act where they are shown: nothing of them does."""

import html
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from rich.table import Table

from audit.config import DataConfig
from audit.data.load import load_data
from audit.errors import ResultsError
from audit.gate.evaluate import evaluate_gate
from audit.gate.policy import Policy
from audit.gate.render import to_junit_xml, to_markdown
from audit.report.build import render_report
from audit.results import AuditResult
from audit.runtime.terminal import plain, say, show

EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "{{ 7 * 7 }}{% raw %}",
    "]]><x/>&lt;&#60;",
    "![](http://example.org/x.png) [x](javascript:alert(1)) `a` | b \\| c\nd",
    "\x1b]0;owned\x07\x1b[2J\r\x9b31m\u202e\u2028",
)


def named(result: AuditResult, name: str) -> AuditResult:
    """The audit with `name` in the place of its model's, a class's and its own."""
    model = result.models[0].model_copy(update={"name": name})
    return result.model_copy(update={"name": name, "models": [model], "classes": [name, *result.classes[1:]]})


@pytest.fixture
def result(support_results: ModuleType, tmp_path: Path) -> AuditResult:
    return support_results.example_audit(tmp_path, models=("plain",), n_queries=0)


@pytest.mark.parametrize("name", EVIL)
def test_the_report_shows_it_as_text(name: str, result: AuditResult, support_results: ModuleType, tmp_path: Path):
    page = render_report(support_results.write_audit(tmp_path, named(result, name))).read_text(encoding="utf-8")
    assert not re.search(r"<script|<img src=x|<x/>|onerror=[^&]*>|[\x1b\u202e\u2028]", page)
    if "\n" not in name and "\x1b" not in name:
        assert name in html.unescape(page)


@pytest.mark.parametrize("name", EVIL)
def test_the_report_shows_names_of_images_as_text(name: str, support_results: ModuleType, tmp_path: Path):
    result = support_results.example_audit(tmp_path, models=("plain",), n_queries=2)
    held = json.loads(support_results.write_audit(tmp_path, result).read_text(encoding="utf-8"))
    for query in held["queries"]:
        query["id"] = f"{name} {query['id']}"
    (tmp_path / "results.json").write_text(json.dumps(held), encoding="utf-8")
    page = render_report(tmp_path / "results.json").read_text(encoding="utf-8")
    assert not re.search(r"<script>alert|<img src=x|<x/>|onerror=[^&]*>|[\x1b\u202e\u2028]", page)


@pytest.mark.parametrize("name", EVIL)
def test_junit_and_markdown_hold_it_as_text(name: str, result: AuditResult):
    policy = Policy.model_validate({"rule": [{"metric": "clean.accuracy", "min": 0.999}]})
    outcome = evaluate_gate(named(result, name), policy)
    case = ElementTree.fromstring(to_junit_xml(outcome)).find("testsuite/testcase")
    assert case is not None
    assert "\x1b" not in str(case.get("classname"))
    assert not list(case.iter("x"))
    summary = to_markdown(outcome)
    assert not re.search(r"<(script|img|x)|(?<!\\)[\[\]`]|[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e\u2028]", summary)
    rows = [line for line in summary.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows}) == 1


def test_the_terminal_shows_it_escaped(capsys: pytest.CaptureFixture[str]):
    table = Table()
    table.add_column("name")
    table.add_row(plain(EVIL[-1]))
    say(EVIL[-1])
    say("two\nlines")
    show(table, whole=True)
    printed = capsys.readouterr().out
    assert r"\x1b]0;owned\x07\x1b[2J\x0d\x9b31m\u202e\u2028" in printed
    assert "two\nlines" in printed
    assert all(line.isprintable() for line in printed.splitlines())


def test_ids_and_classes_of_a_folder_are_escaped_where_they_are_read(tmp_path: Path):
    for name in ("a\x1b[2J", "b\u202e"):
        for number in range(2):
            file = tmp_path / "set" / "test" / name / f"{number}\n.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), number, np.uint8)).save(file)
    data = load_data(DataConfig(path=str(tmp_path / "set")), seed=0)
    assert data.class_names == (r"a\x1b[2J", r"b\u202e")
    assert all(name.isprintable() for name in data.ids)
    assert data.images().shape == (4, 1, 8, 8)


def test_a_report_shows_no_pictures_from_elsewhere(support_results: ModuleType, tmp_path: Path):
    folder = tmp_path / "audit"
    result = support_results.example_audit(folder, models=("plain",), n_queries=1)
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "private.png")
    (folder / "link.png").symlink_to(tmp_path / "private.png")
    for image in ("../private.png", str(tmp_path / "private.png"), "link.png"):
        query = result.queries[0].model_copy(update={"image": image})
        file = support_results.write_audit(folder, result.model_copy(update={"queries": [query]}))
        with pytest.raises(ResultsError, match="lies outside"):
            render_report(file)
