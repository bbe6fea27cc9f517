"""The outcome of a gate for people and programs: Markdown, JUnit XML and JSON."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from typing import Any

from audit.gate.evaluate import WORST_FIRST, Check, GateOutcome, Status

JUNIT_MARK, MARKDOWN_MARK = '<testsuites name="spruce-audit gate"', "## Gate "
"""What the files of a gate begin with, and are known by."""
_VERDICTS: Mapping[Status, str] = {
    "pass": "passed", "fail": "failed", "inconclusive": "inconclusive", "not measured": "incomplete",
}  # fmt: skip
_COUNTED: Mapping[Status, str] = {
    "pass": "passed", "fail": "failed", "inconclusive": "inconclusive", "not measured": "not measured",
}  # fmt: skip


def _xml_text(text: str) -> str:
    """Drop the characters that XML 1.0 cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)


def _junit_kind(outcome: GateOutcome, check: Check) -> str | None:
    """Return the element that says what became of a check; None: it passed."""
    kind = {"fail": "failure", "pass": None}.get(outcome.verdict(check), "error")
    return "skipped" if kind is None and check.status == "inconclusive" else kind


def to_junit_xml(outcome: GateOutcome) -> str:
    """Return the outcome as JUnit XML: a broken bound is a failure, what was not measured or told is an error.

    What is inconclusive and may pass is skipped. The numbers are properties of the suite, where every schema has them.
    """
    kinds = [_junit_kind(outcome, check) for check in outcome.checks]
    counts = {
        "tests": str(len(kinds)), "failures": str(kinds.count("failure")), "errors": str(kinds.count("error")),
    }  # fmt: skip
    root = ElementTree.Element("testsuites", {"name": "spruce-audit gate", **counts})
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": _xml_text(outcome.audit), "skipped": str(kinds.count("skipped")), **counts}
    )
    numbers = {f"{c.model}.{c.metric}": c.measured for c in outcome.checks}
    numbers |= {f"{c.model}.{c.metric} of the baseline": c.baseline for c in outcome.checks}
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in numbers.items():
        if value is not None:
            ElementTree.SubElement(properties, "property", {"name": _xml_text(name), "value": repr(value)})
    for check, kind in zip(outcome.checks, kinds, strict=True):
        name = _xml_text(f"{check.metric} {check.requirement}")
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": _xml_text(check.model), "name": name, "time": "0"}
        )
        if kind is not None:
            text = _xml_text(check.sentence)
            ElementTree.SubElement(case, kind, {"message": text, "type": check.status}).text = text
    if outcome.notes:
        ElementTree.SubElement(suite, "system-out").text = _xml_text("\n".join(outcome.notes))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _cell(text: str) -> str:
    """Escape what Markdown would act on: a name must not end a cell, nor become a link, a picture or a tag."""
    line = "".join(character if character.isprintable() else " " for character in text)
    plain = line.replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\|`*~\[\]])", r"\\\1", plain)


def to_markdown(outcome: GateOutcome) -> str:
    """Return the outcome as a Markdown summary: one sentence, then one row a check, the worst first."""
    verdict = _VERDICTS[outcome.status]
    counts = {_COUNTED[status]: sum(c.status == status for c in outcome.checks) for status in _COUNTED}
    parts = [f"{n} {word}" for word, n in counts.items() if n]
    lines = [f"## Gate {verdict}: {_cell(outcome.audit)}", "", f"{', '.join(parts)}.", ""]
    lines += ["| status | model | metric | required | measured | |", "|---|---|---|---|---:|---|"]
    for check in sorted(outcome.checks, key=lambda c: WORST_FIRST.index(c.status)):
        measured = "not measured" if check.measured is None else f"{check.measured:.4g}"
        status = check.status if check.status == "pass" else f"**{check.status}**"
        why = "" if check.status == "pass" else check.sentence
        cells = (check.model, check.metric, check.requirement, measured, why)
        lines.append(f"| {status} | " + " | ".join(_cell(text) for text in cells) + " |")
    if outcome.inconclusive is not None and counts["inconclusive"]:
        lines += ["", f"What is inconclusive counts as {outcome.inconclusive} in this policy."]
    for note in outcome.notes:
        lines += ["", _cell(note)]
    return "\n".join(lines) + "\n"


def to_json(outcome: GateOutcome) -> str:
    """Return the outcome as JSON, in the shape of `gate_schema`."""
    return outcome.model_dump_json(indent=2) + "\n"


def gate_schema() -> dict[str, Any]:
    """JSON Schema of what `to_json` returns."""
    schema = GateOutcome.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
