"""Check an audit against a policy: every rule passes, fails, is inconclusive or was not measured.

A robust accuracy that failed a trust check, or whose checks were not made, counts as not measured: nobody knows how far
it over-states. So does whatever was measured of a model that is unreliable as a whole or whose audit ended early.

The baseline is another audit, or the model of this one whose role it is; the rules are for the other models then.

Exit status: 1 when anything measured breaks its bound; else 2 when anything asked for was not measured, cannot be
compared with the baseline, cannot be told on so few images, or the audit did not finish; else 0. A failure comes first,
because no further measurement could undo it.
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field, computed_field

from audit.gate.baseline import other_instrument
from audit.gate.policy import Measured, Policy, Rule, Use, doubts_of, load_policy, metrics_of, part_of
from audit.gate.significance import ROUNDING, Estimate, change, more_images, own_estimate, side_of
from audit.results import MEANINGFULNESS, AuditResult, Comparison, ModelResult, Row, why_not_computed

__all__ = ["Check", "GateOutcome", "Policy", "Rule", "evaluate_gate", "load_policy"]

Status = Literal["pass", "fail", "inconclusive", "not measured"]
EXIT_STATUS: dict[Status, int] = {"pass": 0, "fail": 1, "inconclusive": 2, "not measured": 2}
WORST_FIRST: tuple[Status, ...] = ("fail", "not measured", "inconclusive", "pass")
JOINT = "; audit both models together, by `spruce-audit run CONFIG.toml --baseline OLD_CHECKPOINT`"
"""How to mend that numbers that rest on counterfactuals cannot be compared."""


class Check(Row):
    """One bound of one rule on one model."""

    rule: int = Field(description="number of the rule in the policy, from 1")
    model: str
    metric: str
    requirement: str
    measured: float | None
    bound: float | None
    baseline: float | None = Field(default=None, description="the baseline's number, of a rule on change")
    interval: tuple[float, float] | None = Field(
        default=None, description="95 %, of the number or the change that an `only_if` looked at"
    )
    more_images: int | None = Field(
        default=None, description="images beyond the measured ones that would decide it if the number stays; None: open"
    )
    whose: str | None = Field(
        default=None, description="what the number comes from, where it is that of the worst of several things"
    )
    status: Status
    sentence: str


class GateOutcome(Row):
    """All checks of a policy and what they come to."""

    audit: str
    inconclusive: Literal["pass", "fail"] | None = Field(
        default=None, description="what the policy counts an inconclusive check as; None: neither"
    )
    checks: list[Check]
    notes: list[str] = Field(
        default_factory=list, description="what to know of the numbers that were checked; the verdict does without it"
    )

    def verdict(self, check: Check) -> Status:
        """Return what a check counts as."""
        return self.inconclusive or check.status if check.status == "inconclusive" else check.status

    @computed_field(description="the worst that a check counts as")  # type: ignore[prop-decorator]
    @property
    def status(self) -> Status:
        """The worst that a check counts as."""
        found = {self.verdict(check) for check in self.checks}
        return next(status for status in WORST_FIRST if status in found)

    @computed_field(description="0 pass; 1 fail; 2 inconclusive or not measured")  # type: ignore[prop-decorator]
    @property
    def exit_status(self) -> int:
        """The exit status of `spruce-audit gate`."""
        return EXIT_STATUS[self.status]


@dataclass(frozen=True)
class _Case:
    """The audit that is checked, and the one that holds the baseline: the same, where one of its models is that."""

    audit: AuditResult
    before: AuditResult | None
    own: str | None
    """Name of the audit's own baseline."""

    @property
    def is_joint(self) -> bool:
        return self.before is self.audit


def evaluate_gate(results: AuditResult, policy: Policy, baseline: AuditResult | None = None) -> GateOutcome:
    """Check every rule of `policy` on `results`; rules on change compare with `baseline`, or with its own baseline."""
    own = next((model.name for model in results.models if model.role == "baseline"), None)
    case = _Case(results, results if own is not None else baseline, own)
    checks: list[Check] = []
    if own is not None and baseline is not None:
        sentence = f"The audit has its baseline, '{own}', in it already: leave --baseline out."
        checks.append(_not_measured(0, own, "baseline", "one baseline", sentence))
    if not results.complete:
        failed = ", ".join(f"{m.name} failed in {m.failed.stage}" for m in results.models if m.failed is not None)
        sentence = f"The audit did not finish{f' ({failed})' if failed else ''}: run it again to the end."
        checks.append(_not_measured(0, "audit", "complete", "the audit has finished", sentence))
    for name in sorted({m.name for m in results.models if [o.name for o in results.models].count(m.name) > 1}):
        sentence = f"Several models of the audit are called '{name}': run it again with names that differ."
        checks.append(_not_measured(0, name, "name", "one model of this name", sentence))
    for number, rule in enumerate(policy.rule, start=1):
        checks += _check_rule(number, rule, case)
    notes = _still_shrinking(policy, checks, results)
    return GateOutcome(audit=results.name, inconclusive=policy.inconclusive, checks=checks, notes=notes)


def _still_shrinking(policy: Policy, checks: list[Check], results: AuditResult) -> list[str]:
    """Return a sentence on the edits that had not converged, of every model whose checked numbers rest on edits."""
    models = {model.name: model for model in results.models}
    found: dict[str, None] = {}
    for check in checks:
        if check.rule == 0:  # of the audit as a whole
            continue
        rule = policy.rule[check.rule - 1]
        for name in (one for one in (check.model, rule.above) if one in models):
            part, path = part_of(models[name], rule.metric or "index")
            edits, label = part.counterfactuals, models[name].label_of(rule.metric or "")
            # Numbers under `methods` are of the edits of other methods.
            rests = path.split(".")[0] in MEANINGFULNESS and not path.startswith("methods.")
            if rests and edits is not None and edits.still_shrinking:
                who = name if label is None else f"{name} for '{label}'"
                found[f"{edits.still_shrinking} of {edits.n} of {who}"] = None
    told = ", ".join(found)
    return [f"Edits that still shrank when the search ended, so that smaller ones may exist: {told}."] if told else []


def _check_rule(number: int, rule: Rule, case: _Case) -> Iterator[Check]:
    models = {model.name: model for model in case.audit.models}
    names = rule.models or tuple(name for name in models if name not in (rule.above, case.own))
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
            yield _check_above(number, rule, name, case.audit)
        else:
            yield from _check_bounds(number, rule, models[name], case)


def _not_measured(number: int, model: str, metric: str, requirement: str, sentence: str) -> Check:
    return Check(
        rule=number, model=model, metric=metric, requirement=requirement, measured=None, bound=None,
        status="not measured", sentence=sentence,
    )  # fmt: skip


def _check_above(number: int, rule: Rule, name: str, results: AuditResult) -> Check:
    requirement = f"index above {rule.above} with probability ≥ {rule.probability:g}"
    metric = f"above {rule.above}"
    found = next((c for c in results.comparisons if {c.a, c.b} == {name, rule.above}), None)
    given = None if found is None else found.probability if found.a == name else 1 - found.probability
    probability = Measured(given).bound("value")
    if found is None or probability is None:
        return _not_measured(
            number, name, metric, requirement,
            f"The audit holds no comparison of '{name}' with '{rule.above}': both need an index in the same audit.",
        )  # fmt: skip
    index = rule.model_copy(update={"metric": "index"})
    both = [model for model in results.models if model.name in (name, rule.above)]
    doubt = next((d for m in both if (d := doubt_of_all(m) or _doubt_of(m, index))), None)
    passed = probability >= rule.probability - ROUNDING
    if doubt is not None and passed:
        return _not_measured(number, name, metric, requirement, doubt)
    check = Check(
        rule=number, model=name, metric=metric, requirement=requirement, measured=probability, bound=rule.probability,
        status="pass" if passed else "fail",
        sentence=f"{name} is above {rule.above} with probability {probability:.3g}; {rule.probability:g} is asked.",
    )  # fmt: skip
    if rule.only_if is not None and not passed and 1 - probability < rule.probability - ROUNDING:
        check = _inconclusive(check, _more_queries(found, both[0]))
    return check.model_copy(update={"sentence": check.sentence + "".join(_vetoed("index", model) for model in both)})


def _more_queries(row: Comparison, model: ModelResult) -> int | None:
    n = 0 if model.counterfactuals is None else model.counterfactuals.n
    return None if row.images_needed is None else max(row.images_needed - n, 1)


def _inconclusive(check: Check, more: int | None) -> Check:
    told = "" if more is None else f", about {more} more would if it stays as it is"
    sentence = f"{check.sentence} These images do not suffice to decide it{told}."
    return check.model_copy(update={"status": "inconclusive", "more_images": more, "sentence": sentence})


def _vetoed(metric: str, model: ModelResult) -> str:
    """Return a sentence on why the index of the model is 0 whatever its components are, or ''."""
    part, path = part_of(model, metric)
    return f" {model.name} is not meaningful: {part.veto}." if path == "index" and part.veto is not None else ""


def _check_bounds(rule_number: int, rule: Rule, model: ModelResult, case: _Case) -> Iterator[Check]:
    doubt = doubt_of_all(model) or _doubt_of(model, rule)
    for check in _bounds(rule_number, rule, model, case):
        if check.status in ("pass", "inconclusive") and doubt is not None:
            yield check.model_copy(update={"status": "not measured", "more_images": None, "sentence": doubt})
        else:
            yield _with_whose(check, model, rule)


def _with_whose(check: Check, model: ModelResult, rule: Rule) -> Check:
    """Return the check with what its number comes from, where the path of the metric does not tell."""
    number = metrics_of(model).get(rule.metric or "")
    if check.measured is None or number is None or not number.whose:
        return check
    sentence = f"{check.sentence} The number comes from {number.whose}."
    return check.model_copy(update={"whose": number.whose, "sentence": sentence})


def doubt_of_all(model: ModelResult) -> str | None:
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


def _bounds(number: int, rule: Rule, model: ModelResult, case: _Case) -> Iterator[Check]:
    metric = rule.metric or ""
    shown = metric if rule.use == "value" else f"{metric} ({rule.use} end of its interval)"
    measured, reason = _measure(model, case.audit, metric, rule.use)
    for key, sign in (("min", "≥"), ("max", "≤")):
        bound = getattr(rule, key)
        if bound is None:
            continue
        requirement = f"{sign} {bound:g}"
        if measured is None:
            yield _not_measured(number, model.name, shown, requirement, reason)
            continue
        passed = measured >= bound - ROUNDING if key == "min" else measured <= bound + ROUNDING
        least = "at least" if key == "min" else "at most"
        check = Check(
            rule=number, model=model.name, metric=shown, requirement=requirement, measured=measured, bound=bound,
            status="pass" if passed else "fail",
            sentence=f"{shown} of {model.name} is {measured:.4g}; {least} {bound:g} is asked.{_vetoed(metric, model)}",
        )  # fmt: skip
        own = own_estimate(metrics_of(model)[metric]) if rule.only_if is not None else None
        yield check if rule.only_if is None else _decided(check, own, 1 if key == "max" else -1)
    for key, word in (("max_drop", "drop"), ("max_rise", "rise")):
        bound = getattr(rule, key)
        if bound is None:
            continue
        requirement = f"{word} ≤ {bound:g}"
        before, why = (None, reason) if measured is None else _baseline_value(rule, metric, model, case)
        if measured is None or before is None:
            yield _not_measured(number, model.name, shown, requirement, why)
            continue
        fall = before - measured if key == "max_drop" else measured - before
        check = Check(
            rule=number, model=model.name, metric=shown, requirement=requirement, measured=measured, bound=bound,
            baseline=before, status="pass" if fall <= bound + ROUNDING else "fail",
            sentence=f"{shown} of {model.name} is {measured:.4g}, the baseline's is {before:.4g}: "
            f"a {word} of {fall:.4g}; at most {bound:g} is allowed.",
        )  # fmt: skip
        yield check if rule.only_if is None else _decided_change(check, rule, model, case, -1 if word == "drop" else 1)


def _decided_change(check: Check, rule: Rule, model: ModelResult, case: _Case, sign: int) -> Check:
    """Return the check with the verdict that the paired change since the baseline allows; `sign` -1: of its fall."""
    old = _baseline_model(rule, model, case)
    assert old is not None, "its number was read"
    assert case.before is not None
    found = change(rule.metric or "", model, old, case.audit, case.before)
    return _decided(check, found if found is None or sign > 0 else -found, 1)


def _decided(check: Check, found: Estimate | None, sign: int) -> Check:
    """Return the check with the verdict that the interval allows; `sign` -1: the bound is the least value allowed."""
    if found is None:
        sentence = f"{check.metric} of {check.model} has no interval: remove only_if from the rule."
        return check.model_copy(update={"status": "not measured", "sentence": sentence})
    assert check.bound is not None
    upward, bound = (found, check.bound) if sign > 0 else (-found, -check.bound)
    side = side_of(upward, bound)
    told = {"interval": (found.low, found.high), "sentence": f"{check.sentence} {found.told(bound)}"}
    check = check.model_copy(update=told)
    if side == "inconclusive":
        return _inconclusive(check, more_images(upward, bound))
    return check.model_copy(update={"status": side})


def _measure(model: ModelResult, audit: AuditResult, metric: str, use: Use) -> tuple[float | None, str]:
    """Return the number, or None and the sentence that says why it is not there."""
    number = metrics_of(model).get(metric)
    if number is not None and (bound := number.bound(use)) is not None:
        return bound, ""
    if number is not None and number.bound("value") is not None:
        return None, f"{metric} of {model.name} has no interval: gate on its value, or on another metric."
    known = sorted({path for other in audit.models for path in metrics_of(other)})
    part, path = part_of(model, metric)
    absent = getattr(part, path.split(".")[0], 0) is None
    reason = why_not_computed(metric, model, audit)
    if metric in known or absent or reason is not None:
        if model.failed is not None:
            reason = f"the model failed in {model.failed.stage}: {model.failed.why}"
        return None, f"{metric} of {model.name} was not measured{f': {reason}' if reason else ''}".rstrip(".") + "."
    near = difflib.get_close_matches(metric, known, n=1, cutoff=0.0)[0]
    return None, f"'{metric}' is no metric of {model.name} in this audit; did you mean '{near}'?"


def _baseline_model(rule: Rule, model: ModelResult, case: _Case) -> ModelResult | None:
    name = rule.baseline_model or case.own or model.name
    return None if case.before is None else next((m for m in case.before.models if m.name == name), None)


def _baseline_value(rule: Rule, metric: str, model: ModelResult, case: _Case) -> tuple[float | None, str]:
    if case.before is None:
        return None, (
            f"A change of {metric} cannot be measured without a baseline: give --baseline OLD.json, or audit the old "
            f'model in the same audit, with role = "baseline".'
        )
    if not case.before.complete:
        return None, "The baseline audit did not finish: run it again to the end."
    before = _baseline_model(rule, model, case)
    if before is None:
        name = rule.baseline_model or model.name
        return None, f"The baseline has no model '{name}': name one of its models by baseline_model."
    difference = None if case.is_joint else other_instrument(metric, model, before, case.audit, case.before)
    if difference is not None:
        remedy = "" if part_of(model, metric)[1].split(".")[0] not in MEANINGFULNESS else JOINT
        return None, f"{metric} cannot be compared with the baseline: {difference.rstrip('.')}{remedy}."
    doubt = doubt_of_all(before) or _doubt_of(before, rule)
    if doubt is not None:
        return None, f"In the baseline: {doubt}"
    value, reason = _measure(before, case.before, metric, "value")
    return value, f"In the baseline, {reason}"
