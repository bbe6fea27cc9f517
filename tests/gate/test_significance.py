"""Verdicts only where the images suffice: McNemar, Newcombe and the bootstrap, and a baseline in the same audit."""

import json
import random
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.config import parse_config
from audit.errors import ConfigError
from audit.gate.evaluate import Check, Policy, evaluate_gate
from audit.gate.render import gate_schema, to_json, to_junit_xml, to_markdown
from audit.gate.significance import Estimate, change, more_images, side_of
from audit.metrics.exact import mcnemar_p
from audit.metrics.intervals import paired_difference, wilson_interval
from audit.results import AuditResult, Interval, Intervention, Reaction, Reliance, Transferred


@pytest.fixture(scope="module")
def results(support_results: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    return support_results.example_audit(tmp_path_factory.mktemp("audit"), n_queries=8, size=16)


def policy(*rules: dict, **top: str) -> Policy:
    return parse_config(Policy, {"rule": list(rules), **top}, "the test")


def answering(results: AuditResult, wrong: set[int], n: int = 200, weights: str = "new") -> AuditResult:
    """The audit of `plain` alone, which answers the images `wrong` of `n` wrongly."""
    model = next(m for m in results.models if m.name == "plain")
    clean = model.clean.model_copy(
        update={
            "accuracy": wilson_interval(n - len(wrong), n),
            "n": n,
            "misclassified": [f"image-{i}" for i in sorted(wrong)],
        }
    )
    found = model.model_copy(update={"clean": clean, "weights_sha256": weights})
    return results.model_copy(update={"models": [found]})


def one(results: AuditResult, rule: dict, before: AuditResult | None = None) -> Check:
    (check,) = evaluate_gate(results, policy({"only_if": "significant", **rule}), before).checks
    return check


DROP = {"metric": "clean.accuracy", "max_drop": 0.0}


@pytest.mark.parametrize(
    ("wrong", "status"),
    [
        (set(range(30)), "fail"),  # 20 more are wrong, and none of the others right
        (set(range(12)), "inconclusive"),  # 2 more
        (set(range(2)), "pass"),  # 8 fewer
        (set(range(9)), "inconclusive"),  # 1 fewer
    ],
)
def test_a_fall_of_accuracy_is_told_from_none_by_mcnemars_test(results: AuditResult, wrong: set[int], status: str):
    old, new = answering(results, set(range(10)), weights="old"), answering(results, wrong)
    check = one(new, DROP, old)
    assert check.status == status
    right = torch.tensor([[i not in some for i in range(200)] for some in (set(range(10)), wrong)])
    p, interval = mcnemar_p(*right), paired_difference(right[1], right[0])
    assert check.interval == pytest.approx((-interval.high, -interval.low))
    assert f"(paired, exact McNemar p = {p:.2g})" in check.sentence
    assert (p < 0.05) is (status != "inconclusive")
    plain = policy(DROP)
    assert evaluate_gate(new, plain, old).exit_status == (1 if len(wrong) > 10 else 0)


def test_an_allowance_is_held_against_the_interval(results: AuditResult):
    old = answering(results, set(range(10)), weights="old")
    new = answering(results, set(range(14)))  # a fall of 0.02
    for allowed, status in ((0.1, "pass"), (0.03, "inconclusive"), (0.0, "inconclusive")):
        assert one(new, {**DROP, "max_drop": allowed}, old).status == status
    assert one(answering(results, set(range(60))), {**DROP, "max_drop": 0.1}, old).status == "fail"
    rise = {"metric": "clean.accuracy", "max_rise": 0.1}
    assert one(old, rise, answering(results, set(range(60)))).status == "fail"


def test_as_many_images_as_it_says_would_decide_it(results: AuditResult):
    def audits(times: int) -> tuple[AuditResult, AuditResult]:
        every = [{i + 200 * k for i in range(first) for k in range(times)} for first in (10, 16)]
        old, new = (answering(results, wrong, 200 * times, w) for wrong, w in zip(every, ("old", "new"), strict=True))
        return new, old

    rule = {**DROP, "max_drop": 0.01}
    new, old = audits(1)
    check = one(new, rule, old)
    assert check.status == "inconclusive"
    assert check.more_images is not None
    assert f"about {check.more_images} more would" in check.sentence
    enough = -(-(200 + check.more_images) // 200)
    assert one(audits(enough + 1)[0], rule, audits(enough + 1)[1]).status == "fail"
    assert one(audits(max(enough // 2, 1))[0], rule, audits(max(enough // 2, 1))[1]).status == "inconclusive"


def test_equal_weights_need_no_images(results: AuditResult):
    same = answering(results, {1}, 4)
    assert one(same, DROP, same).status == "pass"
    assert one(same, DROP, answering(results, {1}, 4, "other")).status == "inconclusive"


def test_robust_accuracy_is_compared_image_by_image(results: AuditResult):
    def attacked(fooled: int, weights: str) -> AuditResult:
        model = next(m for m in results.models if m.name == "trades")
        outcomes = {f"image-{i}": "pgd" if i < fooled else None for i in range(100)}
        attack = model.robust.pgd["8/255"].model_copy(
            update={"outcomes": outcomes, "robust_accuracy": wilson_interval(100 - fooled, 100)}
        )
        robust = model.robust.model_copy(update={"pgd": {"8/255": attack}})
        model = model.model_copy(update={"robust": robust, "weights_sha256": weights})
        return results.model_copy(update={"models": [model]})

    rule = {"metric": "robust.pgd.8/255", "max_drop": 0}
    new, old = attacked(40, "new"), attacked(30, "old")
    check = one(new, rule, old)
    assert check.status == "fail"
    assert "McNemar" in check.sentence
    # Of two separate samples, the same numbers could not be told apart.
    apart = [one(audit, {"metric": "robust.pgd.8/255", bound: 0.65}) for audit, bound in ((new, "min"), (old, "max"))]
    assert {c.status for c in apart} == {"inconclusive"}


def test_means_over_query_images_are_compared_by_the_paired_bootstrap(results: AuditResult):
    def edited(shift: float, weights: str) -> AuditResult:
        model = next(m for m in results.models if m.name == "trades")
        rows = [row.model_copy(update={"l1": 0.02 + 0.005 * i + shift}) for i, row in enumerate(model.queries)]
        found = model.counterfactuals.model_copy(update={"l1": Interval(value=0.0375 + shift, low=0.0, high=0.08, n=8)})
        model = model.model_copy(update={"queries": rows, "counterfactuals": found, "weights_sha256": weights})
        return results.model_copy(update={"models": [model, *results.models[1:]]})

    rule = {"metric": "counterfactuals.l1", "models": ["trades"], "max_rise": 0.001}
    check = one(edited(0.002, "new"), rule, edited(0, "old"))
    assert (check.status, check.interval) == ("fail", pytest.approx((0.002, 0.002)))
    assert "paired bootstrap" in check.sentence
    again = one(edited(0.002, "new"), rule, edited(0, "old"))
    assert again == check


def test_what_is_not_kept_by_image_is_compared_by_both_intervals(results: AuditResult):
    def corrupted(value: float, weights: str) -> AuditResult:
        model = results.models[0]
        found = model.robust.corruptions.model_copy(
            update={"mean_accuracy": Interval(value=value, low=value - 0.03, high=value + 0.04, n=500)}
        )
        robust = model.robust.model_copy(update={"corruptions": found})
        model = model.model_copy(update={"robust": robust, "weights_sha256": weights})
        return results.model_copy(update={"models": [model]})

    new, old = corrupted(0.6, "new"), corrupted(0.7, "old")
    found = change("robust.corruptions.mean_accuracy", new.models[0], old.models[0], new, old)
    assert found is not None
    assert (found.value, found.low, found.high) == pytest.approx((-0.1, -0.15, -0.05))
    rule = {"metric": "robust.corruptions.mean_accuracy", "max_drop": 0.0}
    assert "not paired" in one(new, rule, old).sentence
    assert one(new, {"metric": "clean.ece", "max_drop": 0.0}, old).status == "not measured"


@given(value=st.floats(-1, 1), half=st.floats(0.001, 0.5), bound=st.floats(-1, 1))
@settings(max_examples=50, deadline=None)
def test_sides_and_images(value: float, half: float, bound: float):
    estimate = Estimate(value, value - half, value + half, 100, "test")
    side = side_of(estimate, bound)
    assert side == side_of(estimate, bound + 1e-12) or abs(abs(value - bound) - half) < 1e-6
    more = more_images(estimate, bound)
    if side == "inconclusive" and abs(value - bound) > 0.01:
        assert more is not None
        smaller = half * (100 / (100 + more)) ** 0.5
        there = Estimate(value, value - smaller, value + smaller, 100 + more, "test")
        assert side_of(there, bound) != "inconclusive" or more_images(there, bound) == 1


def test_a_bound_on_the_number_itself_is_held_against_its_interval(results: AuditResult):
    rule = {"metric": "index", "models": ["trades"]}  # 61, 56 to 66
    for bounds, status in (({"min": 50}, "pass"), ({"min": 60}, "inconclusive"), ({"max": 50}, "fail")):
        assert one(results, {**rule, **bounds}).status == status


@pytest.mark.parametrize(
    ("probability", "asked", "status"),
    [(0.83, 0.95, "inconclusive"), (0.97, 0.95, "pass"), (0.02, 0.95, "fail")],
)
def test_an_order_that_is_not_sure_is_inconclusive(results: AuditResult, probability: float, asked: float, status: str):
    rows = [c.model_copy(update={"probability": probability, "images_needed": 30}) for c in results.comparisons]
    given = results.model_copy(update={"comparisons": rows})
    check = one(given, {"above": "shortcut", "models": ["trades"], "probability": asked})
    assert check.status == status
    assert check.more_images == (22 if status == "inconclusive" else None)


INCONCLUSIVE = {"metric": "index", "models": ["trades"], "min": 60, "only_if": "significant"}


@pytest.mark.parametrize(
    ("counted", "exit_status", "element"), [(None, 2, "error"), ("pass", 0, "skipped"), ("fail", 1, "failure")]
)
def test_the_policy_says_what_is_inconclusive_counts_as(
    results: AuditResult, counted: str | None, exit_status: int, element: str
):
    outcome = evaluate_gate(results, policy(INCONCLUSIVE, **({} if counted is None else {"inconclusive": counted})))
    assert outcome.exit_status == exit_status
    assert f"<{element} " in to_junit_xml(outcome)
    assert "**inconclusive**" in to_markdown(outcome)


def test_what_is_in_doubt_is_not_measured_rather_than_inconclusive(results: AuditResult):
    doubted = results.models[0].model_copy(update={"unreliable": ["Its answers depend on the other images."]})
    given = results.model_copy(update={"models": [doubted, *results.models[1:]]})
    assert one(given, {k: v for k, v in INCONCLUSIVE.items() if k != "only_if"}).status == "not measured"


def test_only_if_looks_at_both_ends():
    with pytest.raises(ConfigError, match="remove 'use'"):
        policy({"metric": "index", "min": 1, "only_if": "significant", "use": "low"})


def test_json_keeps_its_schema(results: AuditResult):
    outcome = evaluate_gate(results, policy(INCONCLUSIVE, {"metric": "nothing", "min": 0}))
    printed = json.loads(to_json(outcome))
    jsonschema.validate(printed, gate_schema())
    assert (printed["status"], printed["exit_status"]) == ("not measured", 2)
    assert printed["checks"][0]["interval"] == [56.0, 66.0]


# The baseline within the audit.


def joint(results: AuditResult, **comparison: object) -> AuditResult:
    """`trades` with `plain` as its baseline, and what the bootstrap says of their difference."""
    models = [m for m in results.models if m.name in ("trades", "plain")]
    models = [m.model_copy(update={"role": "baseline" if m.name == "plain" else None}) for m in models]
    (row,) = [c for c in results.comparisons if {c.a, c.b} == {"trades", "plain"}]
    return results.model_copy(update={"models": models, "comparisons": [row.model_copy(update=comparison)]})


def test_the_baseline_of_the_audit_is_compared_with_and_not_judged(results: AuditResult):
    outcome = evaluate_gate(joint(results), policy({"metric": "index", "min": 50}, {"metric": "index", "max_drop": 0}))
    assert [c.model for c in outcome.checks] == ["trades", "trades"]
    assert outcome.exit_status == 0
    assert outcome.checks[1].baseline == 34
    named = policy({"metric": "index", "models": ["plain"], "min": 50})
    assert evaluate_gate(joint(results), named).exit_status == 1
    twice = evaluate_gate(joint(results), policy({"metric": "index", "min": 50}), results)
    assert twice.exit_status == 2
    assert "leave --baseline out" in twice.checks[0].sentence


@pytest.mark.parametrize(
    ("low", "high", "status"), [(5.0, 30.0, "pass"), (-3.0, 30.0, "inconclusive"), (-30.0, -5.0, "fail")]
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_change_of_the_index_is_told_by_the_bootstrap_of_both(
    results: AuditResult, low: float, high: float, status: str, turned: bool
):
    found = Interval(value=(low + high) / 2, low=low, high=high, n=8)
    a, b = ("trades", "plain") if not turned else ("plain", "trades")
    if turned:
        found = Interval(value=-(low + high) / 2, low=-high, high=-low, n=8)
    given = joint(results, a=a, b=b, difference=found, components={"realism": found})
    for metric in ("index", "components.realism"):
        check = one(given, {"metric": metric, "max_drop": 0})
        assert check.status == status
        assert check.interval == (-high, -low)


def test_separate_audits_are_told_to_be_made_together(results: AuditResult):
    before = results.model_copy(update={"seed": 9})
    check = one(results, {"metric": "index", "models": ["trades"], "max_drop": 0}, before)
    assert check.status == "not measured"
    assert "--baseline OLD_CHECKPOINT" in check.sentence
    for changed, words in (
        ({"environment": results.environment.model_copy(update={"versions": {"spruce-audit": "9"}})}, "version 9 of"),
        ({"not_computed": []}, None),
    ):
        said = one(
            results, {"metric": "index", "models": ["trades"], "max_drop": 50}, results.model_copy(update=changed)
        )
        assert said.status == ("not measured" if words else "pass")
        assert words is None or words in said.sentence


def reacting(results: AuditResult) -> AuditResult:
    """Two models' audit, in which `trades` has an intervention, and the images of the other one's attack."""
    share = Interval(value=0.1, low=0.05, high=0.2, n=100)
    reaction = Reaction(strength=0.1, variant="", variants={}, changed=share, shift=share, towards=None, rise=share)
    blur = Intervention(name="blur", kind="sharpness", unit="", reactions=[reaction])
    transfers = [Transferred(source="plain", metric="robust.pgd.8/255", accuracy=share, fooled=share)]
    trades, plain = (next(m for m in results.models if m.name == name) for name in ("trades", "plain"))
    robust = trades.robust.model_copy(update={"transfers": transfers})
    trades = trades.model_copy(update={"reliance": Reliance(n=100, interventions=[blur]), "robust": robust})
    return results.model_copy(update={"models": [trades, plain]})


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("reliance.interventions.blur.reactions.0.1.changed", "reliance.n was 9 there"),
        ("robust.transfers.plain.robust.pgd.8/255.accuracy", "made for other models"),
    ],
)
def test_numbers_of_other_settings_or_other_models_are_not_compared(results: AuditResult, metric: str, words: str):
    now = reacting(results)
    rule = policy({"metric": metric, "models": ["trades"], "max_rise": 0.5, "allow_unchecked": True})
    assert evaluate_gate(now, rule, now).exit_status == 0
    before = {"models": now.models[:1], "config": {**now.config, "reliance": {"n": 9}}}
    (check,) = evaluate_gate(now, rule, now.model_copy(update=before)).checks
    assert check.status == "not measured"
    assert words in check.sentence


def test_files_without_outcomes_by_image_are_compared_all_the_same(results: AuditResult, tmp_path: Path):
    old = results.model_copy(
        update={"models": [m.model_copy(update={"weights_sha256": "old"}) for m in results.models]}
    )
    check = one(results, {"metric": "clean.accuracy", "models": ["trades"], "max_drop": 0.2}, old)
    assert check.status == "pass"
    assert "not paired" in check.sentence


def test_a_verdict_is_rarely_wrong_where_the_change_is_at_its_bound(results: AuditResult):
    """Of audits whose true fall is exactly the allowance, about 1 in 40 fails, and 1 in 40 passes."""
    draw = random.Random(0)
    verdicts = []
    for _ in range(120):
        old = {i for i in range(300) if draw.random() < 0.15}
        new = {i for i in range(300) if draw.random() < (0.8 if i in old else 0.1)}  # 0.205 wrong, 0.055 more
        found = change(
            "clean.accuracy",
            answering(results, new, 300).models[0],
            answering(results, old, 300, "old").models[0],
            results,
            results,
        )
        assert found is not None
        verdicts.append(side_of(-found, 0.055))
    assert verdicts.count("fail") <= 8
    assert verdicts.count("pass") <= 8
