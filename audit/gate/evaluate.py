"""Check an audit against a policy: every rule passes, fails or was not measured, and only the first lets it through.

A robust accuracy that failed a trust check, or whose checks were not made, counts as not measured: nobody knows how far
it over-states. So does whatever was measured of a model that is unreliable as a whole or whose audit ended early.

Exit status: 1 when anything measured breaks its bound; else 2 when anything asked for was not measured, cannot be
compared with the baseline, or the audit did not finish; else 0. A failure comes first, because no further measurement
could undo it.
"""

import difflib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from audit.gate.baseline import other_instrument
from audit.gate.policy import Measured, Policy, Rule, Use, doubts_of, load_policy, metrics_of
from audit.results import AuditResult, ModelResult, Row, why_not_computed

__all__ = ["Check", "GateOutcome", "Policy", "Rule", "evaluate_gate", "load_policy", "to_junit_xml", "to_markdown"]

Status = Literal["pass", "fail", "not measured"]
JUNIT_MARK, MARKDOWN_MARK = '<testsuites name="spruce-audit gate"', "## Gate "
"""What the files of a gate begin with, and are known by."""
EXIT_STATUS: dict[Status, int] = {"pass": 0, "fail": 1, "not measured": 2}
_ROUNDING = 1e-9  # 0.9 - 0.05 is 0.8500000000000001 in binary; a bound met to nine digits is met


class Check(Row):
    """One bound of one rule on one model."""

    rule: int = Field(description="number of the rule in the policy, from 1")
    model: str
    metric: str
    requirement: str
    measured: float | None
    bound: float | None
    status: Status
    sentence: str


class GateOutcome(Row):
    """All checks of a policy and what they come to."""

    audit: str
    status: Status
    checks: list[Check]

    @property
    def exit_status(self) -> int:
        """Return 0 for pass, 1 for failed, 2 for incomplete or not measured."""
        return EXIT_STATUS[self.status]


def evaluate_gate(results: AuditResult, policy: Policy, baseline: AuditResult | None = None) -> GateOutcome:
    """Check every rule of `policy` on `results`; rules on change compare with `baseline`."""
    checks: list[Check] = []
    if not results.complete:
        failed = ", ".join(f"{m.name} failed in {m.failed.stage}" for m in results.models if m.failed is not None)
        sentence = f"The audit did not finish{f' ({failed})' if failed else ''}: run it again to the end."
        checks.append(_not_measured(0, "audit", "complete", "the audit has finished", sentence))
    for name in sorted({m.name for m in results.models if [o.name for o in results.models].count(m.name) > 1}):
        sentence = f"Several models of the audit are called '{name}': run it again with names that differ."
        checks.append(_not_measured(0, name, "name", "one model of this name", sentence))
    for number, rule in enumerate(policy.rule, start=1):
        checks += _check_rule(number, rule, results, baseline)
    states = {check.status for check in checks}
    worst: tuple[Status, ...] = ("fail", "not measured", "pass")
    return GateOutcome(audit=results.name, status=next(s for s in worst if s in states), checks=checks)


def _check_rule(number: int, rule: Rule, results: AuditResult, baseline: AuditResult | None) -> Iterator[Check]:
    models = {model.name: model for model in results.models}
    names = rule.models or tuple(name for name in models if name != rule.above)
    if not names:
        yield _not_measured(number, "-", rule.metric or "rank", "a model to check", "The audit has no model to check.")
    for name in names:
        if name not in models:
            near = difflib.get_close_matches(name, list(models), n=1, cutoff=0.0)
            hint = f"; did you mean '{near[0]}'?" if near else "."
            yield _not_measured(
                number, name, rule.metric or f"above {rule.above}", "the model is in the audit",
                f"Model '{name}' is not in the audit{hint}",
            )  # fmt: skip
        elif rule.above is not None:
            yield _check_above(number, rule, name, results)
        else:
            yield from _check_bounds(number, rule, models[name], results, baseline)


def _not_measured(number: int, model: str, metric: str, requirement: str, sentence: str) -> Check:
    return Check(
        rule=number, model=model, metric=metric, requirement=requirement, measured=None, bound=None,
        status="not measured", sentence=sentence,
    )  # fmt: skip


def _check_above(number: int, rule: Rule, name: str, results: AuditResult) -> Check:
    requirement = f"index above {rule.above} with probability ≥ {rule.probability:g}"
    metric = f"above {rule.above}"
    found = [c.probability for c in results.comparisons if (c.a, c.b) == (name, rule.above)]
    found += [1 - c.probability for c in results.comparisons if (c.b, c.a) == (name, rule.above)]
    probability = Measured(found[0]).bound("value") if found else None
    if probability is None:
        return _not_measured(
            number, name, metric, requirement,
            f"The audit holds no comparison of '{name}' with '{rule.above}': both need an index in the same audit.",
        )  # fmt: skip
    index = rule.model_copy(update={"metric": "index"})
    both = [model for model in results.models if model.name in (name, rule.above)]
    doubt = next((d for m in both if (d := _doubt_of_all(m) or _doubt_of(m, index))), None)
    if doubt is not None and probability >= rule.probability - _ROUNDING:
        return _not_measured(number, name, metric, requirement, doubt)
    passed = probability >= rule.probability - _ROUNDING
    sentence = f"{name} is above {rule.above} with probability {probability:.3g}; {rule.probability:g} is asked."
    sentence += "".join(_vetoed("index", model) for model in both)
    return Check(
        rule=number, model=name, metric=metric, requirement=requirement, measured=probability, bound=rule.probability,
        status="pass" if passed else "fail", sentence=sentence,
    )  # fmt: skip


def _vetoed(metric: str, model: ModelResult) -> str:
    """Return a sentence on why the index of the model is 0 whatever its components are, or ''."""
    return f" {model.name} is not meaningful: {model.veto}." if metric == "index" and model.veto is not None else ""


def _check_bounds(
    rule_number: int, rule: Rule, model: ModelResult, results: AuditResult, baseline: AuditResult | None
) -> Iterator[Check]:
    doubt = _doubt_of_all(model) or _doubt_of(model, rule)
    for check in _bounds(rule_number, rule, model, results, baseline):
        if check.status == "pass" and doubt is not None:
            yield check.model_copy(update={"status": "not measured", "sentence": doubt})
        else:
            yield check


def _doubt_of_all(model: ModelResult) -> str | None:
    """Return why nothing that was measured of the model passes a bound, or None."""
    if model.unreliable:
        return f"Whatever was measured of {model.name} is unreliable: {model.unreliable[0]}"
    if model.failed is not None:
        return f"The audit of {model.name} ended early, at {model.failed.stage}: {model.failed.why.rstrip('.')}."
    return None


def _doubt_of(model: ModelResult, rule: Rule) -> str | None:
    """Return why the number that the rule names passes no bound, or None."""
    metric = rule.metric or ""
    doubts = doubts_of(model, metric)
    if doubts.untrusted and not rule.allow_untrusted:
        return f"{metric} of {model.name} is untrusted: {doubts.untrusted[0]}"
    if doubts.unchecked and not rule.allow_unchecked:
        return (
            f"{metric} of {model.name} is unchecked: {doubts.unchecked[0].rstrip('.')}; "
            "make the check possible, or set allow_unchecked in the rule."
        )
    return None


def _bounds(
    number: int, rule: Rule, model: ModelResult, results: AuditResult, baseline: AuditResult | None
) -> Iterator[Check]:
    metric = rule.metric or ""
    shown = metric if rule.use == "value" else f"{metric} ({rule.use} end of its interval)"
    measured, reason = _measure(model, results, metric, rule.use)
    for key, sign in (("min", "≥"), ("max", "≤")):
        bound = getattr(rule, key)
        if bound is None:
            continue
        requirement = f"{sign} {bound:g}"
        if measured is None:
            yield _not_measured(number, model.name, shown, requirement, reason)
            continue
        passed = measured >= bound - _ROUNDING if key == "min" else measured <= bound + _ROUNDING
        least = "at least" if key == "min" else "at most"
        yield Check(
            rule=number, model=model.name, metric=shown, requirement=requirement, measured=measured, bound=bound,
            status="pass" if passed else "fail",
            sentence=f"{shown} of {model.name} is {measured:.4g}; {least} {bound:g} is asked.{_vetoed(metric, model)}",
        )  # fmt: skip
    for key, word in (("max_drop", "drop"), ("max_rise", "rise")):
        bound = getattr(rule, key)
        if bound is None:
            continue
        requirement = f"{word} ≤ {bound:g}"
        before, why = (None, reason) if measured is None else _baseline_value(rule, metric, model, results, baseline)
        if measured is None or before is None:
            yield _not_measured(number, model.name, shown, requirement, why)
            continue
        change = before - measured if key == "max_drop" else measured - before
        yield Check(
            rule=number, model=model.name, metric=shown, requirement=requirement, measured=measured, bound=bound,
            status="pass" if change <= bound + _ROUNDING else "fail",
            sentence=f"{shown} of {model.name} is {measured:.4g}, the baseline's is {before:.4g}: "
            f"a {word} of {change:.4g}; at most {bound:g} is allowed.",
        )  # fmt: skip


def _measure(model: ModelResult, audit: AuditResult, metric: str, use: Use) -> tuple[float | None, str]:
    """Return the number, or None and the sentence that says why it is not there."""
    number = metrics_of(model).get(metric)
    if number is not None and (bound := number.bound(use)) is not None:
        return bound, ""
    if number is not None and number.bound("value") is not None:
        return None, f"{metric} of {model.name} has no interval: gate on its value, or on another metric."
    known = sorted({path for other in audit.models for path in metrics_of(other)})
    absent = getattr(model, metric.split(".")[0], 0) is None
    reason = why_not_computed(metric, model, audit)
    if metric in known or absent or reason is not None:
        if model.failed is not None:
            reason = f"the model failed in {model.failed.stage}: {model.failed.why}"
        return None, f"{metric} of {model.name} was not measured{f': {reason}' if reason else ''}".rstrip(".") + "."
    near = difflib.get_close_matches(metric, known, n=1, cutoff=0.0)[0]
    return None, f"'{metric}' is no metric of {model.name} in this audit; did you mean '{near}'?"


def _baseline_value(
    rule: Rule, metric: str, model: ModelResult, results: AuditResult, baseline: AuditResult | None
) -> tuple[float | None, str]:
    if baseline is None:
        return None, f"A change of {metric} cannot be measured without a baseline: give --baseline OLD.json."
    if not baseline.complete:
        return None, "The baseline audit did not finish: run it again to the end."
    name = rule.baseline_model or model.name
    before = next((m for m in baseline.models if m.name == name), None)
    if before is None:
        return None, f"The baseline has no model '{name}': name one of its models by baseline_model."
    difference = other_instrument(metric, model, before, results, baseline)
    if difference is not None:
        return None, f"{metric} cannot be compared with the baseline: {difference}."
    doubt = _doubt_of_all(before) or _doubt_of(before, rule)
    if doubt is not None:
        return None, f"In the baseline: {doubt}"
    value, reason = _measure(before, baseline, metric, "value")
    return value, f"In the baseline, {reason}"


def _xml_text(text: str) -> str:
    """Drop the characters that XML 1.0 cannot hold."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "", text)


def to_junit_xml(outcome: GateOutcome) -> str:
    """Return the outcome as JUnit XML: a broken bound is a failure, what was not measured is an error."""
    failed = sum(check.status == "fail" for check in outcome.checks)
    missing = sum(check.status == "not measured" for check in outcome.checks)
    counts = {"tests": str(len(outcome.checks)), "failures": str(failed), "errors": str(missing)}
    root = ElementTree.Element("testsuites", {"name": "spruce-audit gate", **counts})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _xml_text(outcome.audit), "skipped": "0", **counts})
    for check in outcome.checks:
        name = _xml_text(f"{check.metric} {check.requirement}")
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": _xml_text(check.model), "name": name, "time": "0"}
        )
        if check.status != "pass":
            kind = "failure" if check.status == "fail" else "error"
            text = _xml_text(check.sentence)
            ElementTree.SubElement(case, kind, {"message": text, "type": check.status}).text = text
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def to_markdown(outcome: GateOutcome) -> str:
    """Return the outcome as a Markdown summary: one sentence, then one row a check, the worst first."""
    counts = {status: sum(c.status == status for c in outcome.checks) for status in EXIT_STATUS}
    verdict = {"pass": "passed", "fail": "failed", "not measured": "incomplete"}[outcome.status]
    parts = [f"{n} {word}" for n, word in zip(counts.values(), ("passed", "failed", "not measured"), strict=True) if n]
    lines = [f"## Gate {verdict}: {_cell(outcome.audit)}", "", f"{', '.join(parts)}.", ""]
    lines += ["| status | model | metric | required | measured | |", "|---|---|---|---|---:|---|"]
    order = {"fail": 0, "not measured": 1, "pass": 2}
    for check in sorted(outcome.checks, key=lambda c: order[c.status]):
        measured = "not measured" if check.measured is None else f"{check.measured:.4g}"
        status = check.status if check.status == "pass" else f"**{check.status}**"
        why = "" if check.status == "pass" else check.sentence
        cells = (check.model, check.metric, check.requirement, measured, why)
        lines.append(f"| {status} | " + " | ".join(_cell(text) for text in cells) + " |")
    return "\n".join(lines) + "\n"
