"""The gate: measured failures fail, what is not measured never passes, and both are told apart."""

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.config import parse_config
from audit.errors import ConfigError
from audit.gate.evaluate import Policy, evaluate_gate, load_policy
from audit.gate.policy import Measured, metrics_of
from audit.gate.ranges import range_of
from audit.gate.render import to_junit_xml, to_markdown
from audit.results import (
    AuditResult,
    Failure,
    Group,
    Interval,
    Intervention,
    InterventionKind,
    LoadingCheck,
    NotComputed,
    Reaction,
    Reliance,
    Treated,
    TrustCheck,
    read_results,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(support_results: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    return support_results.example_audit(tmp_path_factory.mktemp("audit"), n_queries=2, size=16)


def policy(*rules: dict) -> Policy:
    return parse_config(Policy, {"rule": list(rules)}, "the test")


def with_model(results: AuditResult, name: str, /, **changes: object) -> AuditResult:
    models = [m.model_copy(update=changes) if m.name == name else m for m in results.models]
    return results.model_copy(update={"models": models})


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("rank", 1),
        ("index", 61.0),
        ("components.validity", 0.99),
        ("clean.accuracy", 0.885),
        ("clean.recall.opacity", 0.835),
        ("clean.ece", 0.031),
        ("robust.pgd.8/255", 0.71),
        ("robust.pgd.8/255.robust_accuracy", 0.71),
        ("counterfactuals.flip_ratio", 0.99),
        ("counterfactuals.perceptual", 0.043),
        ("counterfactuals.mmd.healthy", 5.28),
        ("counterfactuals.regions.marker.mass", 0.02),
        ("counterfactuals.judges.logistic-regression.accuracy", 0.9),
        ("left_out.opacity", 4),
    ],
)
def test_metrics_by_dotted_path(results: AuditResult, metric: str, value: float):
    assert metrics_of(results.models[0])[metric].value == pytest.approx(value)


def test_keys_with_dots_are_found(results: AuditResult):
    robust = results.models[0].robust
    changed = with_model(results, "trades", robust=robust.model_copy(update={"pgd": {"0.3": robust.pgd["8/255"]}}))
    outcome = evaluate_gate(changed, policy({"metric": "robust.pgd.0.3", "models": ["trades"], "min": 0.7}))
    assert outcome.exit_status == 0


@pytest.mark.parametrize(
    ("rule", "status"),
    [
        ({"metric": "index", "min": 10}, 0),
        ({"metric": "index", "min": 30}, 1),
        ({"metric": "index", "models": ["trades"], "min": 60}, 0),
        ({"metric": "index", "models": ["trades"], "min": 60, "use": "low"}, 1),
        ({"metric": "components.transfer", "models": ["shortcut"], "max": 0.1}, 0),
        ({"metric": "components.transfer", "models": ["shortcut"], "max": 0.1, "use": "high"}, 1),
        ({"metric": "rank", "models": ["trades"], "max": 1}, 0),
        ({"metric": "clean.accuracy", "min": 0.5, "max": 0.9}, 1),
        ({"metric": "clean.ece", "max": 0.1, "use": "high"}, 2),
        ({"metric": "counterfactuals.lpips", "max": 1.0}, 2),
        ({"metric": "clean.acuracy", "min": 0.1}, 2),
        ({"metric": "index", "models": ["tradez"], "min": 1}, 2),
        ({"metric": "index", "max_drop": 1}, 2),
        ({"above": "shortcut", "models": ["trades"]}, 0),
        ({"above": "shortcut"}, 1),
        ({"above": "trades", "models": ["shortcut"], "probability": 0.01}, 0),
        ({"above": "nobody", "models": ["trades"]}, 2),
    ],
)
def test_exit_status_of_one_rule(results: AuditResult, rule: dict, status: int):
    outcome = evaluate_gate(results, policy(rule))
    assert outcome.exit_status == status, outcome
    assert all(c.sentence.endswith((".", "?")) for c in outcome.checks)


def test_a_typing_error_is_met_with_the_nearest_name(results: AuditResult):
    rules = [{"metric": "clean.acuracy", "min": 0}, {"metric": "index", "models": ["plane"], "min": 0}]
    outcome = evaluate_gate(results, policy(*rules))
    assert "did you mean 'clean.accuracy'?" in outcome.checks[0].sentence
    assert "did you mean 'plain'?" in outcome.checks[-1].sentence


def test_the_reason_of_a_missing_number_is_told(results: AuditResult):
    outcome = evaluate_gate(results, policy({"metric": "counterfactuals.lpips", "max": 1}))
    assert "LPIPS weights are not on this machine" in outcome.checks[0].sentence


def test_the_reason_is_found_by_the_path_alone(results: AuditResult):
    absent = NotComputed(what="CMMD", why="the CLIP weights are absent", paths=["counterfactuals.cmmd"])
    named_alike = NotComputed(what="lpips.value and healthy", why="something else")
    noted = results.model_copy(update={"not_computed": [named_alike, absent]})
    rules = [{"metric": f"counterfactuals.{name}", "max": 1} for name in ("cmmd.healthy", "lpips.value", "cmmds")]
    checks = evaluate_gate(noted, policy(*rules)).checks
    cmmd, lpips, unknown = (next(c.sentence for c in checks if c.rule == number) for number in (1, 2, 3))
    assert cmmd.endswith("was not measured: the CLIP weights are absent.")
    assert lpips.endswith("was not measured: the LPIPS weights are not on this machine.")
    assert "is no metric" in unknown


def test_a_file_of_earlier_versions_has_no_paths_and_the_same_verdict(results: AuditResult, tmp_path: Path):
    stored = results.model_dump(mode="json")
    for note in (*stored["not_computed"], *(n for m in stored["models"] for n in m["not_computed"])):
        del note["paths"]
    (tmp_path / "results.json").write_text(json.dumps(stored))
    (check,) = evaluate_gate(
        read_results(tmp_path / "results.json"),
        policy({"metric": "counterfactuals.lpips", "models": ["trades"], "max": 1}),
    ).checks
    assert (check.status, check.sentence) == ("not measured", "counterfactuals.lpips of trades was not measured.")


def test_failure_comes_before_incompleteness(results: AuditResult):
    fails, unknown = {"metric": "index", "min": 99}, {"metric": "nothing", "min": 0}
    assert evaluate_gate(results, policy(unknown, fails)).exit_status == 1
    assert evaluate_gate(results, policy(unknown, {"metric": "index", "min": 0})).exit_status == 2


def test_an_unfinished_audit_never_passes(results: AuditResult):
    unfinished = results.model_copy(update={"complete": False})
    assert evaluate_gate(unfinished, policy({"metric": "index", "min": 0})).exit_status == 2
    assert evaluate_gate(unfinished, policy({"metric": "index", "min": 99})).exit_status == 1


def test_robustness_only_results_cannot_pass_a_rule_on_the_index(support_results: ModuleType, tmp_path: Path):
    results = support_results.example_audit(tmp_path, n_queries=0)
    rules = [{"metric": m, "min": 0} for m in ("index", "counterfactuals.flip_ratio", "components.realism")]
    outcome = evaluate_gate(results, policy(*rules))
    assert {c.status for c in outcome.checks} == {"not measured"}
    assert evaluate_gate(results, policy({"metric": "clean.accuracy", "min": 0.5})).exit_status == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_not_measured(results: AuditResult, value: float):
    broken = with_model(results, "trades", index=value)
    for bound in ({"min": 0}, {"max": 100}):
        outcome = evaluate_gate(broken, policy({"metric": "index", "models": ["trades"], **bound}))
        assert outcome.exit_status == 2


@given(before=st.floats(0, 100), now=st.floats(0, 100), bound=st.floats(0, 100))
@settings(max_examples=25, deadline=None)
def test_drop_and_rise_are_mirror_images(results: AuditResult, before: float, now: float, bound: float):
    new, old = with_model(results, "plain", index=now), with_model(results, "plain", index=before)
    drop = evaluate_gate(new, policy({"metric": "index", "models": ["plain"], "max_drop": bound}), old)
    rise = evaluate_gate(old, policy({"metric": "index", "models": ["plain"], "max_rise": bound}), new)
    assert drop.exit_status == rise.exit_status == (0 if before - now <= bound + 1e-9 else 1)


def test_change_against_another_model_of_the_baseline(results: AuditResult):
    rule = {"metric": "index", "models": ["plain"], "max_drop": 5}
    assert evaluate_gate(results, policy(rule), results).exit_status == 0
    assert evaluate_gate(results, policy({**rule, "baseline_model": "trades"}), results).exit_status == 1
    assert evaluate_gate(results, policy({**rule, "baseline_model": "nobody"}), results).exit_status == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"complete": False}, "did not finish"),
        ({"generator_sha256": "other"}, "another generator"),
        ({"realism_embedding": None}, "another embedding"),
        ({"realism_kernel": "energy"}, "metrics.realism_kernel was energy there and is cmmd here"),
        ({"component_definitions": 2}, "the index and its components are defined otherwise"),
    ],
)
def test_a_baseline_of_another_instrument_is_refused(results: AuditResult, changes: dict, words: str):
    outcome = evaluate_gate(results, policy({"metric": "index", "max_drop": 50}), results.model_copy(update=changes))
    assert outcome.exit_status == 2
    assert words in outcome.checks[0].sentence


def test_an_index_without_the_veto_is_another_one(results: AuditResult):
    vetoing = results.model_copy(update={"config": results.config | {"regions": {"confounder": ["marker"]}}})
    (check,) = evaluate_gate(results, policy({"metric": "index", "max_drop": 50, "models": ["plain"]}), vetoing).checks
    assert "regions.confounder was ['marker'] there and is [] here" in check.sentence


def test_flips_shared_with_other_copies_are_not_compared(results: AuditResult):
    rule = policy({"metric": "counterfactuals.nafr", "max_drop": 0.5})
    assert evaluate_gate(results, rule, results).exit_status == 0
    before = results.model_copy(deep=True)
    for model in before.models:
        model.counterfactuals.copies[0].weights_sha256 = "other"
    outcome = evaluate_gate(results, rule, before)
    assert outcome.exit_status == 2
    assert "other copies" in outcome.checks[0].sentence
    assert evaluate_gate(results, policy({"metric": "index", "max_drop": 50}), before).exit_status == 0


def test_numbers_of_robustness_are_named_by_check_norm_corruption_and_share(results: AuditResult):
    table = metrics_of(results.models[0])
    for path in (
        "robust.ensemble.8/255",
        "robust.ensemble.8/255.stages.square.standing",
        "robust.checks.black-box-beats-white-box.value",
        "robust.distances.Linf.median",
        "robust.corruptions.mean_accuracy",
        "robust.corruptions.corruptions.fog.mean",
        "robust.corruptions.corruptions.fog.accuracy.5",
        "robust.shift.accuracy",
        "robust.vulnerability.smallest_share",
        "robust.vulnerability.shares.0.1.accuracy",
        "robust.vulnerability.regions.region.mass",
    ):
        assert table[path].value is not None, path
    assert not any("by_image" in path for path in table)


def doubted(results: AuditResult) -> AuditResult:
    robust = results.models[0].robust
    attack = robust.pgd["8/255"].model_copy(update={"untrusted": ["Gradients vanish on 40 % of the images."]})
    return with_model(results, "trades", robust=robust.model_copy(update={"pgd": {"8/255": attack}}))


def test_an_untrusted_robust_accuracy_passes_no_bound_unless_the_rule_allows_it(results: AuditResult):
    rule = {"metric": "robust.pgd.8/255", "models": ["trades"], "min": 0.1}
    outcome = evaluate_gate(doubted(results), policy(rule))
    assert outcome.exit_status == 2
    assert "untrusted: Gradients vanish" in outcome.checks[0].sentence
    assert evaluate_gate(doubted(results), policy(rule | {"allow_untrusted": True})).exit_status == 0
    assert evaluate_gate(results, policy(rule)).exit_status == 0


def test_an_untrusted_robust_accuracy_that_is_too_low_fails_all_the_same(results: AuditResult):
    rule = {"metric": "robust.pgd.8/255", "models": ["trades"], "min": 0.99}
    assert evaluate_gate(doubted(results), policy(rule)).exit_status == 1


def test_robust_accuracy_of_a_weaker_attack_is_no_baseline(results: AuditResult):
    robust = results.models[0].robust
    weaker = robust.pgd["8/255"].model_copy(update={"steps": 1})
    old = with_model(results, "trades", robust=robust.model_copy(update={"pgd": {"8/255": weaker}}))
    rule = {"metric": "robust.pgd.8/255", "models": ["trades"], "max_drop": 0.1}
    outcome = evaluate_gate(results, policy(rule), old)
    assert outcome.exit_status == 2
    assert "number of steps" in outcome.checks[0].sentence


def unchecked(results: AuditResult, **changes: object) -> AuditResult:
    return with_model(results, "trades", robust=results.models[0].robust.model_copy(update=changes))


@pytest.mark.parametrize("metric", ["robust.pgd.8/255", "robust.ensemble.8/255", "robust.distances.Linf.median"])
def test_a_number_whose_checks_were_not_made_passes_no_bound_unless_the_rule_allows_it(
    results: AuditResult, metric: str
):
    rule = {"metric": metric, "models": ["trades"], "min": 0.01}
    assert evaluate_gate(results, policy(rule)).exit_status == 0
    bare = unchecked(results, trusted=None, checks=[])
    outcome = evaluate_gate(bare, policy(rule))
    assert outcome.exit_status == 2
    assert "unchecked" in outcome.checks[0].sentence
    assert evaluate_gate(bare, policy(rule | {"allow_untrusted": True})).exit_status == 2
    assert evaluate_gate(bare, policy(rule | {"allow_unchecked": True})).exit_status == 0
    assert evaluate_gate(bare, policy({"metric": "clean.accuracy", "models": ["trades"], "min": 0.5})).exit_status == 0


def test_one_check_that_could_not_be_made_is_told_by_its_finding(results: AuditResult):
    row = TrustCheck(
        name="large-eps", passed=None, value=None, limit=None, n=8, finding="Only 3 of the 8 images are right."
    )
    outcome = evaluate_gate(
        unchecked(results, trusted=None, checks=[row]),
        policy({"metric": "robust.pgd.8/255", "models": ["trades"], "min": 0.1}),
    )
    assert outcome.exit_status == 2
    assert "Only 3 of the 8 images are right; make the check possible" in outcome.checks[0].sentence


def test_a_number_says_itself_that_it_was_not_checked(results: AuditResult):
    attack = results.models[0].robust.ensemble["8/255"].model_copy(update={"unchecked": ["No check was made."]})
    rule = {"metric": "robust.ensemble.8/255", "models": ["trades"], "min": 0.1}
    outcome = evaluate_gate(unchecked(results, ensemble={"8/255": attack}, trusted=False), policy(rule))
    assert outcome.exit_status == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"unreliable": ["Its logits depend on the other images of the batch."]},
        {"failed": Failure(stage="attacks", why="NaN on image 'a'.")},
    ],
)
def test_nothing_passes_of_a_model_that_is_unreliable_or_failed(results: AuditResult, changes: dict):
    broken = with_model(results, "trades", **changes)
    numbers = ("clean.accuracy", "index", "robust.ensemble.8/255", "robust.corruptions.mean_accuracy", "rank")
    allowed = {"allow_untrusted": True, "allow_unchecked": True}
    for metric in numbers:
        rule = {"metric": metric, "models": ["trades"], **({"max": 4} if metric == "rank" else {"min": 0.01})}
        outcome = evaluate_gate(broken, policy(rule | (allowed if "robust" in metric else {})))
        assert outcome.exit_status == 2, metric
        assert any(words in outcome.checks[0].sentence for words in ("depend on the other images", "NaN on image"))
        assert evaluate_gate(broken, policy(rule | {"models": ["plain"]} | allowed)).exit_status == 0
    assert evaluate_gate(broken, policy({"models": ["trades"], "above": "shortcut"})).exit_status == 2
    assert evaluate_gate(broken, policy({"models": ["plain"], "above": "trades", "probability": 0.01})).exit_status == 2
    change = {"metric": "clean.accuracy", "models": ["trades"], "max_drop": 0.5}
    assert evaluate_gate(results, policy(change), broken).exit_status == 2
    assert evaluate_gate(results, policy(change), results).exit_status == 0


def test_counterfactuals_that_a_blind_search_made_pass_no_bound(results: AuditResult):
    found = results.models[0].counterfactuals.model_copy(update={"untrusted": ["Its logits have no gradient."]})
    blind = with_model(results, "trades", counterfactuals=found)
    for metric in ("index", "components.validity", "counterfactuals.flip_ratio"):
        rule = {"metric": metric, "models": ["trades"], "min": 0.01}
        assert evaluate_gate(blind, policy(rule)).exit_status == 2
        assert evaluate_gate(blind, policy(rule | {"allow_untrusted": True})).exit_status == 0
    assert (
        evaluate_gate(blind, policy({"metric": "clean.accuracy", "models": ["trades"], "min": 0.01})).exit_status == 0
    )
    assert evaluate_gate(blind, policy({"models": ["trades"], "above": "shortcut"})).exit_status == 2


def test_numbers_of_a_model_that_no_edit_explains_pass_no_bound(results: AuditResult):
    found = results.models[0].counterfactuals.model_copy(update={"unexplained": "of 8 query images 6 do not flip"})
    ruined = with_model(results, "trades", counterfactuals=found)
    for metric, bound in (("index", 99), ("counterfactuals.regions.marker.mass", 0.9)):
        (check,) = evaluate_gate(ruined, policy({"metric": metric, "models": ["trades"], "max": bound})).checks
        assert check.status == "not measured"
        assert "explains trades: of 8 query images 6 do not flip." in check.sentence


def test_a_share_of_the_edit_can_be_asked_for_at_the_end_of_its_interval(results: AuditResult):
    regions = [
        row.model_copy(update={"mass": 0.3, "mass_interval": (0.2, 0.4)})
        for row in results.models[0].counterfactuals.regions
    ]
    found = results.models[0].counterfactuals.model_copy(update={"regions": regions})
    wide = with_model(results, "trades", counterfactuals=found)
    rule = {"metric": "counterfactuals.regions.region.mass", "models": ["trades"], "min": 0.25}
    assert evaluate_gate(wide, policy(rule)).exit_status == 0
    assert evaluate_gate(wide, policy(rule | {"use": "low"})).exit_status == 1


def test_two_models_of_one_name_pass_nothing(results: AuditResult):
    twice = results.model_copy(update={"models": [*results.models, results.models[0]]})
    assert evaluate_gate(twice, policy({"metric": "clean.accuracy", "min": 0.1})).exit_status == 2


def test_a_veto_is_told_with_the_rule_that_it_breaks(results: AuditResult):
    models = [m.model_copy(update={"index": 0.0, "veto": "its edits lie there"}) for m in results.models[:1]]
    vetoed = results.model_copy(update={"models": [*models, *results.models[1:]]})
    (check,) = evaluate_gate(vetoed, policy({"metric": "index", "min": 20, "models": [models[0].name]})).checks
    assert check.status == "fail"
    assert check.sentence.endswith(f" {models[0].name} is not meaningful: its edits lie there.")


def test_every_number_of_an_audit_has_a_range_and_lies_in_it(results: AuditResult):
    for metric, number in metrics_of(results.models[0]).items():
        bounds = range_of(metric)
        assert bounds is not None, metric
        low, high = bounds
        assert number.value is None or low <= number.value <= high, metric


def interval(value: float | None) -> Interval:
    return Interval(value=value) if value is None else Interval(value=value, low=value - 0.05, high=value + 0.05, n=50)


def test_what_a_model_relies_on_and_how_it_was_loaded_are_single_numbers(results: AuditResult):
    def reacted(name: str, kind: InterventionKind, *changed: float) -> Intervention:
        rows = [
            Reaction(
                strength=strength, variant="top right", variants={"top right": share}, changed=interval(0.1),
                shift=interval(share), towards=None, rise=interval(None), of_class="opacity", class_towards="healthy",
                class_changed=interval(share),
            )
            for strength, share in enumerate(changed, start=1)
        ]  # fmt: skip
        return Intervention(name=name, kind=kind, unit="pixels", reactions=rows)

    def without(part: Literal["region", "rest"], treatment: str, stay: float | None) -> Treated:
        share = interval(stay)
        return Treated(
            region="lesion", part=part, treatment=treatment, n=50, accuracy=share, clean_accuracy=share,
            stay_right=share, fall=share, follow=interval(None),
        )  # fmt: skip

    reliance = Reliance(
        n=50,
        interventions=[reacted("text", "token", 0.1, 0.3), reacted("blur", "sharpness", 0.2, 0.1)],
        regions=[
            without("region", "blurred", 0.4), without("region", "exchanged", 0.6), without("rest", "blurred", 0.7),
            without("rest", "exchanged", None),
        ],
        groups=[Group(column="site", value="north", accuracy=interval(0.6), gap=interval(-0.2), p_value=0.01)],
    )  # fmt: skip
    passed = {"input": None, "gradient": False, "determinism": True}
    certificate = [LoadingCheck(name=name, passed=told, finding="So.") for name, told in passed.items()]
    model = results.models[0].model_copy(update={"reliance": reliance, "certificate": certificate})
    table = metrics_of(model)
    assert table["reliance.worst"] == table["reliance.worst.token"] == Measured(0.3, 0.25, pytest.approx(0.35), 50)
    assert table["reliance.worst.sharpness"].value == 0.2
    lost = table["reliance.necessity.lesion"]
    assert [lost.value, lost.low, lost.high] == pytest.approx([0.4, 0.35, 0.45])
    assert table["reliance.sufficiency.lesion"].value is None
    assert table["reliance.gap"].value == -0.2
    assert table["certificate.failed"].value == 1
    assert [table[f"certificate.{name}"].value for name in passed] == [None, 0, 1]
    for metric, number in table.items():
        assert (bounds := range_of(metric)) is not None, metric
        assert number.value is None or bounds[0] <= number.value <= bounds[1], metric
    bounds = {
        "certificate.failed": 0, "reliance.worst.token": 0.1,
        "reliance.interventions.text.reactions.2.class_changed": 0, "reliance.necessity.lesion": 0.1,
        "reliance.gap": -0.5,
    }  # fmt: skip
    told = results.model_copy(update={"models": [model]})
    outcome = evaluate_gate(told, policy(*({"metric": metric, "max": bound} for metric, bound in bounds.items())))
    assert outcome.exit_status == 1
    text = "text (top right, 2 pixels), which changes decisions for 'opacity', mostly to 'healthy'"
    assert [check.whose for check in outcome.checks] == ["gradient", text, text, "lesion exchanged", "site north"]
    for check in outcome.checks:
        assert check.sentence.endswith(f" is asked. The number comes from {check.whose}.")
        assert check.sentence in to_junit_xml(outcome)
        assert check.sentence in to_markdown(outcome)
    below = {"metric": "reliance.worst.token", "max": 0.1, "use": "low"}
    assert evaluate_gate(told, policy(below)).checks[0].whose == text


@pytest.mark.parametrize(
    ("metric", "bounds"),
    [
        ("robust.pgd.8/255", (0, 1)),
        ("robust.pgd_l2.0.5", (0, 1)),
        ("robust.ensemble.0.03.robust_accuracy", (0, 1)),
        ("robust.ensemble_l2.128/255.stages.square.standing", (0, math.inf)),
        ("index", (0, 100)),
        ("counterfactuals.mmd.healthy", (-math.inf, math.inf)),
        ("robust.distances.L2.median", (0, math.inf)),
    ],
)
def test_ranges_by_path(metric: str, bounds: tuple[float, float]):
    assert range_of(metric) == bounds


def named(results: AuditResult, name: str, **changes: object) -> AuditResult:
    """The audit with `changes` in the attack at 8/255 of `name`'s PGD."""
    robust = next(m for m in results.models if m.name == name).robust
    attack = robust.pgd["8/255"].model_copy(update=changes)
    return with_model(results, name, robust=robust.model_copy(update={"pgd": {"8/255": attack}}))


def configured(results: AuditResult, section: str, **changes: object) -> AuditResult:
    table = {**(results.config.get(section) or {}), **changes}
    return results.model_copy(update={"config": {**results.config, section: table}})


OTHER_GROUND = {
    "encoder": (lambda r: r.model_copy(update={"encoder_sha256": "ef" * 32}), "another encoder"),
    "counterfactual": (lambda r: configured(r, "counterfactual", steps=7), "counterfactual.steps was 7 there"),
    "inversion": (lambda r: configured(r, "inversion", tuning_steps=7), "inversion.tuning_steps"),
    "ranking": (lambda r: configured(r, "ranking", transfer=0.0), "ranking.transfer"),
    "metrics": (lambda r: configured(r, "metrics", min_images=99), "metrics.min_images"),
    "target": (lambda r: configured(r, "queries", target="runner-up"), "queries.target"),
    "seed": (lambda r: r.model_copy(update={"seed": 99}), "the seed was 99"),
    "queries": (lambda r: with_model(r, "trades", queries=r.models[0].queries[:1]), "other query images"),
    "judges": (lambda r: r.model_copy(update={"models": r.models[:2]}), "its model"),
    "judge's weights": (lambda r: with_model(r, "plain", weights_sha256="99" * 32), "judge 'plain' has other weights"),
    "images": (lambda r: r.model_copy(update={"data": {**r.data, "audited_sha256": "1"}}), "which images"),
}


@pytest.mark.parametrize("what", OTHER_GROUND)
@pytest.mark.parametrize("metric", ["index", "components.transfer", "counterfactuals.flip_ratio"])
def test_meaningfulness_is_compared_on_equal_ground_only(results: AuditResult, what: str, metric: str):
    change, words = OTHER_GROUND[what]
    rule = policy({"metric": metric, "models": ["trades"], "max_drop": 0.9})
    assert evaluate_gate(results, rule, results).exit_status == 0
    for new, old in ((results, change(results)), (change(results), results)):
        outcome = evaluate_gate(new, rule, old)
        assert outcome.exit_status == 2
    if what != "judges":
        assert words in evaluate_gate(results, rule, change(results)).checks[0].sentence


def test_a_bound_on_memory_and_the_place_of_a_file_are_no_settings(results: AuditResult):
    moved = configured(configured(results, "inversion", max_memory="9GB", encoder="a.safetensors"), "data", path="b")
    moved = configured(moved, "metrics", embedding="c.safetensors", perceptual="c.safetensors")
    assert evaluate_gate(results, policy({"metric": "index", "max_drop": 1}), moved).exit_status == 0


def test_what_the_audited_method_is_compared_with_is_no_other_ground(results: AuditResult):
    rule = policy({"metric": "index", "max_drop": 1})
    more, other = (configured(results, "counterfactual", method=names) for names in (["spruce", "pixel"], ["pixel"]))
    assert evaluate_gate(more, rule, results).exit_status == evaluate_gate(results, rule, more).exit_status == 0
    assert "counterfactual.method was pixel there" in evaluate_gate(results, rule, other).checks[0].sentence


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"eps": 0.5}, "radius was 0.5"),
        ({"norm": "L2"}, "in L2 there"),
        ({"restarts": 9}, "restarts"),
        ({"outcomes": {"a": None}}, "other images were attacked"),
    ],
)
def test_robust_accuracy_is_compared_under_one_attack_only(results: AuditResult, changes: dict, words: str):
    rule = policy({"metric": "robust.pgd.8/255", "models": ["trades"], "max_drop": 0.9})
    new = named(results, "trades", outcomes={"b": None})
    assert evaluate_gate(new, rule, new).exit_status == 0
    outcome = evaluate_gate(new, rule, named(new, "trades", **changes))
    assert outcome.exit_status == 2
    assert words in outcome.checks[0].sentence


def test_robust_accuracy_is_compared_on_as_many_images_and_with_one_step_size(results: AuditResult):
    rule = policy({"metric": "robust.pgd.8/255", "models": ["trades"], "max_drop": 0.9})
    accuracy = results.models[0].robust.pgd["8/255"].robust_accuracy.model_copy(update={"n": 8})
    assert evaluate_gate(results, rule, named(results, "trades", robust_accuracy=accuracy)).exit_status == 2
    assert evaluate_gate(results, rule, configured(results, "robustness", step_size=0.1)).exit_status == 2
    assert evaluate_gate(results, rule, configured(results, "robustness", batch_size=3)).exit_status == 0


@pytest.mark.parametrize(
    ("metric", "section"),
    [
        ("robust.corruptions.mean_accuracy", {"corruptions": {"severities": [1]}}),
        ("robust.distances.Linf.median", {"distance": {"bisections": 2}}),
        ("robust.vulnerability.shares.0.1.accuracy", {"vulnerability": {"steps": 3}}),
    ],
)
def test_other_numbers_of_robustness_are_compared_at_equal_settings_only(
    results: AuditResult, metric: str, section: dict
):
    rule = policy({"metric": metric, "models": ["trades"], "max_drop": 0.9})
    assert evaluate_gate(results, rule, results).exit_status == 0
    assert evaluate_gate(results, rule, configured(results, "robustness", **section)).exit_status == 2


def test_corruptions_are_compared_at_severities_of_one_list_only(results: AuditResult):
    rule = policy({"metric": "robust.corruptions.mean_accuracy", "models": ["trades"], "max_drop": 0.9})
    asked = configured(results, "robustness", corruptions={"constants": "imagenet-c"})
    automatic = configured(results, "robustness", corruptions={"constants": "auto"})
    assert evaluate_gate(asked, rule, automatic).exit_status == 0  # 'auto' came to the same
    other = automatic.model_copy(deep=True)
    for model in other.models:
        model.robust.corruptions.constants = "cifar-c"
    outcome = evaluate_gate(asked, rule, other)
    assert outcome.exit_status == 2
    assert "those of cifar-c there and of imagenet-c here" in outcome.checks[0].sentence


def test_clean_accuracy_is_compared_on_the_same_images_only(results: AuditResult):
    rule = policy({"metric": "clean.accuracy", "max_drop": 0.9})
    one = results.model_copy(update={"data": {**results.data, "audited_sha256": "1"}})
    other = results.model_copy(update={"data": {**results.data, "audited_sha256": "2"}})
    assert evaluate_gate(one, rule, one).exit_status == 0
    outcome = evaluate_gate(one, rule, other)
    assert outcome.exit_status == 2
    assert "other images" in outcome.checks[0].sentence
    assert "run it again" in evaluate_gate(one, rule, results).checks[0].sentence
    renamed = results.model_copy(update={"classes": ["a", "b", "c"]})
    assert evaluate_gate(results, rule, renamed).exit_status == 2


def test_change_without_baseline_does_not_hide_the_absolute_bound(results: AuditResult):
    outcome = evaluate_gate(results, policy({"metric": "index", "models": ["trades"], "min": 99, "max_drop": 1}))
    assert [c.status for c in outcome.checks] == ["fail", "not measured"]


def test_junit_counts_failures_and_errors(results: AuditResult):
    named = results.model_copy(update={"name": 'a <b> & \x00 "c"'})
    rules = [{"metric": "index", "min": 30}, {"metric": "clean.acuracy", "min": 0, "models": ["plain"]}]
    root = ElementTree.fromstring(to_junit_xml(evaluate_gate(named, policy(*rules))))
    suite = root.find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("5", "1", "1")
    assert [c.get("classname") for c in suite.findall("testcase[failure]")] == ["shortcut"]
    assert [c.get("classname") for c in suite.findall("testcase[error]")] == ["plain"]
    assert suite.get("name") == 'a <b> &  "c"'


def test_edits_that_still_shrank_are_told_where_a_checked_number_rests_on_them(results: AuditResult):
    models = []
    for model, converged in zip(results.models, (0.5, 1.0, None, math.nan), strict=False):
        assert model.counterfactuals is not None
        edits = model.counterfactuals.model_copy(update={"converged": converged, "n": 64})
        models.append(model.model_copy(update={"counterfactuals": edits}))
    told = results.model_copy(update={"models": models})
    first, second = models[0].name, models[1].name
    sentence = f"Edits that still shrank when the search ended, so that smaller ones may exist: 32 of 64 of {first}."
    for rule in (
        {"metric": "index", "min": 0}, {"metric": "counterfactuals.l1", "max": 1, "models": [first]},
        {"above": first, "models": [second]}, {"above": second, "models": [first]},
    ):  # fmt: skip
        outcome = evaluate_gate(told, policy(rule, rule))
        assert outcome.notes == [sentence]
        assert f"\n\n{sentence}\n" in to_markdown(outcome)
        root = ElementTree.fromstring(to_junit_xml(outcome))
        assert root.findtext("testsuite/system-out") == sentence
    for rule in (
        {"metric": "clean.accuracy", "min": 0}, {"metric": "index", "min": 0, "models": [second]},
        {"metric": "methods.pixel.counterfactuals.l1", "max": 1},
    ):  # fmt: skip
        outcome = evaluate_gate(told, policy(rule))
        assert outcome.notes == []
        assert "still shrank" not in to_markdown(outcome) + to_junit_xml(outcome)


def test_markdown_puts_the_worst_first_and_keeps_its_columns(results: AuditResult):
    piped = with_model(results, "shortcut", name="short|cut")
    text = to_markdown(evaluate_gate(piped, policy({"metric": "index", "min": 30})))
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert text.startswith("## Gate failed: phantom demo")
    assert "short\\|cut" in rows[1]
    assert {row.replace("\\|", "").count("|") for row in rows} == {7}


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("", "rule"),
        ("rule = []", "rule"),
        ('[[rule]]\nmetric = "index"', "needs one of min, max"),
        ("[[rule]]\nmin = 1", "needs 'metric'"),
        ('[[rule]]\nmetric = "index"\nmim = 1', "did you mean 'min'"),
        ('[[rule]]\nmetric = "index"\nabove = "plain"', "stands alone"),
        ('[[rule]]\nmetric = "index"\nmin = 1\nbaseline_model = "plain"', "needs max_drop"),
        ('[[rule]]\nmetric = "index"\nmin = nan', "finite"),
        ('[[rule]]\nmetric = "index"\nmax_drop = -1', "greater than or equal to 0"),
        ('[[rule]]\nmetric = "clean.accuracy"\nmax = 5', "max = 5 on 'clean.accuracy' is outside"),
        ('[[rule]]\nmetric = "robust.pgd.8/255"\nmin = -1', "0 to 1; shares are written from 0 to 1"),
        ('[[rule]]\nmetric = "robust.pgd_l2.0.5"\nmin = 85', "outside of what it can be"),
        ('[[rule]]\nmetric = "index"\nmin = 101', "0 to 100"),
        ('[[rule]]\nmetric = "robust.distances.Linf.median"\nmin = -0.1', "at least 0"),
        ('[[rule]]\nmetric = "index"\nmin = 60\nmax = 40', "no number keeps both"),
        ('[[rule]]\nmetric = "clean.accuracy"\nmax_drop = 2', "more than it can change"),
        ('[[rule]]\nmetric = "index"\nmax_rise = 101', "more than it can change"),
        ("[[rule", "not valid TOML"),
    ],
)
def test_bad_policies_name_the_key(tmp_path: Path, toml: str, words: str):
    file = tmp_path / "gate.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError, match=words):
        load_policy(file)


def test_the_example_policy_passes_the_example_audit(results: AuditResult):
    policy = load_policy(ROOT / "benchmarks" / "gate.toml")
    told_apart = [c.model_copy(update={"probability": 0.97}) for c in results.comparisons]
    outcome = evaluate_gate(results.model_copy(update={"comparisons": told_apart}), policy)
    assert outcome.exit_status == 0, to_markdown(outcome)
    assert evaluate_gate(results, policy).exit_status == 1  # plain and shortcut cannot be told apart there
