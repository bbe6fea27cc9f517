"""The sentence on top: right for every shape of an audit, never stronger than its numbers, no undue praise."""

import html
import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.metrics.intervals import wilson_interval
from audit.report.robustness import distrust
from audit.report.verdict import cautions, guesses, one_class, verdict
from audit.results import (
    Attack,
    AuditResult,
    Clean,
    Components,
    Difference,
    Environment,
    Failure,
    Interval,
    ModelResult,
    Notice,
    Robust,
    TrustCheck,
)

RADII = {"2/255": 2 / 255, "8/255": 8 / 255}


def words(markup: str) -> str:
    shown = html.unescape(re.sub(r"<[^>]+>", "", markup))
    return shown.replace("\N{NO-BREAK SPACE}", " ").replace("\N{EN DASH}", "-")


@pytest.fixture(scope="module")
def results(support_results: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    return support_results.example_audit(tmp_path_factory.mktemp("audit"), n_queries=2, size=16)


def plain(result: AuditResult) -> str:
    return words(verdict(result))


def change(result: AuditResult, **by_name: dict) -> AuditResult:
    models = [m.model_copy(update=by_name.get(m.name.replace("-", "_"), {})) for m in result.models]
    return result.model_copy(update={"models": models})


def test_verdict_names_best_last_and_why(results: AuditResult):
    assert plain(results) == (
        "trades gives the most meaningful counterfactuals (index 61 [56, 66]); "
        "shortcut is last: 71 % of its edit lies on the marker."
    )


def test_verdict_of_shared_first_and_last_place(results: AuditResult):
    shared = change(results, trades_small={"rank": 1}, plain={"rank": 4})
    assert plain(shared).startswith("trades and trades-small give the most meaningful")
    assert plain(shared).endswith("plain and shortcut share the last place.")
    same = change(results, **{n: {"rank": 1} for n in ("trades", "trades_small", "plain", "shortcut")})
    assert plain(same).startswith("trades, trades-small, plain and shortcut cannot be told apart")


def test_verdict_without_regions_names_the_weakest_part(results: AuditResult):
    bare = {
        m.name.replace("-", "_"): {"counterfactuals": m.counterfactuals.model_copy(update={"regions": []})}
        for m in results.models
        if m.counterfactuals
    }
    assert plain(change(results, **bare)).endswith("shortcut is last: its localisation is 0.00, against 0.59.")


def test_a_last_model_that_no_edit_explains_is_said_to_be_so(results: AuditResult):
    found = results.models[3].counterfactuals
    assert found is not None
    ruined = change(
        results, shortcut={"counterfactuals": found.model_copy(update={"unexplained": "of 8 6 do not flip"})}
    )
    assert plain(ruined).endswith("shortcut is last: no edit within the generator's range explains it.")


def test_verdict_of_one_model(support_results: ModuleType, tmp_path: Path):
    one = support_results.example_audit(tmp_path, models=["plain"], n_queries=2, size=16)
    assert plain(one) == (
        "plain has a meaningfulness index of 34 [29, 39] out of 100: "
        "21 % of its edit lies in the region that carries the class."
    )


def test_names_are_escaped(results: AuditResult):
    evil = change(results, trades={"name": "<script>alert(1)</script>"})
    assert "<script" not in verdict(evil)


def model(name: str, clean: float, robust: float | None, n: int = 500, k: int = 10, **fields: Any) -> ModelResult:
    """A model of `k` classes, each recognised as well as the others; `robust` under PGD at 8/255."""
    per_class = n // k
    right = [round(clean * per_class)] * k
    confusion = [[right[i] if i == j else 0 for j in range(k)] for i in range(k)]
    for i in range(k):
        confusion[i][(i + 1) % k] = per_class - right[i]
    attacks = {}
    if robust is not None:
        accuracy = wilson_interval(round(robust * n), n)
        attacks["8/255"] = Attack(robust_accuracy=accuracy, eps=8 / 255, steps=20, restarts=1)
    values: dict[str, Any] = {
        "name": name, "rank": None, "index": None, "index_interval": None, "components": Components(),
        "weights_sha256": "0", "source": "x",
        "clean": Clean(
            accuracy=wilson_interval(sum(right), n), recall={f"c{i}": right[i] / max(per_class, 1) for i in range(k)},
            ece=0.0, n=n, confusion=confusion,
        ),
        "robust": Robust(pgd=attacks, trusted=True),
    }  # fmt: skip
    return ModelResult(**(values | fields))


def audit_of(models: Sequence[ModelResult], k: int = 10, **fields: Any) -> AuditResult:
    return AuditResult(
        name="x", created="", complete=True, config={}, seed=0, classes=[f"c{i}" for i in range(k)], data={},
        models=list(models), environment=Environment(versions={}, device="cpu", platform=""), **fields,
    )  # fmt: skip


def untrusted(one: ModelResult, check: str = "zero-gradients") -> ModelResult:
    row = TrustCheck(name=check, passed=False, value=1.0, limit=0.1, n=64, finding="Blind.")
    pgd = {r: a.model_copy(update={"untrusted": ["Blind."]}) for r, a in one.robust.pgd.items()}
    return one.model_copy(
        update={"robust": one.robust.model_copy(update={"pgd": pgd, "trusted": False, "checks": [row]})}
    )


END = "Why they decide as they do was not examined."


def test_three_of_four_fall() -> None:
    models = [model("a", 0.92, 0.0), model("b", 0.94, 0.04), model("c", 0.92, 0.01), model("d", 0.84, 0.47)]
    assert plain(audit_of(models)) == (
        "Three of four models fall from 92-94 % to 0-4 % under PGD at eps 8/255 (500 images); "
        f"d keeps the highest accuracy: 47.0 % [43, 51] (clean 84.0 %). {END}"
    )


def test_a_tie_at_zero_crowns_nobody() -> None:
    shown = plain(audit_of([model("a", 0.92, 0.0), model("b", 0.94, 0.0)]))
    assert shown == f"a and b fall from 92-94 % to 0 % under PGD at eps 8/255 (500 images). {END}"
    all_of = plain(audit_of([model(name, 0.92, 0.0) for name in "abc"]))
    assert all_of == f"All three models fall from 92 % to 0 % under PGD at eps 8/255 (500 images). {END}"


def test_a_model_that_classifies_poorly_is_told_apart_from_those_that_fall_with_it() -> None:
    good, poor = [model("a", 0.98, 0.02), model("b", 0.94, 0.0), model("c", 0.96, 0.0)], model("poor", 0.2, 0.0)
    shown = plain(audit_of([*good, poor]))
    assert shown == (
        "Three of four models fall from 94-98 % to 0-2 % under PGD at eps 8/255 (500 images), "
        f"and poor from 20.0 % to 0.0 %. {END}"
    )
    one = plain(audit_of([good[0], poor]))
    assert one.startswith("a falls from 98.0 % to 2.0 % under PGD at eps 8/255 (500 images), and poor from 20.0 %")
    level = plain(audit_of([model("a", 0.9, 0.6), model("b", 0.6, 0.59)]))
    assert level.startswith("a and b keep 59-60 % under PGD at eps 8/255 (clean 90.0 %, 60.0 %, 500 images)")


def test_a_poor_model_is_not_praised() -> None:
    shown = plain(audit_of([model("poor", 0.28, 0.2), model("good", 0.92, 0.0)]))
    assert "highest" not in shown
    assert "poor keeps 20.0 % [17, 24], but classifies only 28.0 % of the clean images rightly, against 92.0 %" in shown
    assert shown.startswith("good falls from 92.0 % to 0.0 %")


def test_differences_within_chance_are_said_to_be_so() -> None:
    close = [model("a", 0.9, 0.71), model("b", 0.9, 0.7)]
    shown = plain(audit_of(close))
    assert shown.startswith("a and b keep 70-71 % under PGD at eps 8/255 (clean 90 %, 500 images): the difference is")
    three = plain(audit_of([*close, model("c", 0.9, 0.7)]))
    assert three.startswith("a, b and c keep 70-71 %")
    assert "which is highest cannot be told" in three
    # The paired difference decides where there is one: it sees what two intervals cannot.
    gap = Interval(value=0.01, low=0.002, high=0.018, n=500)
    paired = audit_of(close, differences=[Difference(a="b", b="a", metric="robust.pgd.8/255", difference=_minus(gap))])
    assert plain(paired).startswith("a keeps the highest accuracy under PGD at eps 8/255: 71.0 %")


def _minus(gap: Interval) -> Interval:
    assert gap.value is not None
    assert gap.low is not None
    assert gap.high is not None
    return Interval(value=-gap.value, low=-gap.high, high=-gap.low, n=gap.n)


def test_an_untrusted_number_is_no_evidence_but_its_fall_is() -> None:
    masked, sound = untrusted(model("masked", 0.93, 0.9)), model("sound", 0.9, 0.5)
    shown = plain(audit_of([masked, sound]))
    assert shown.startswith("sound keeps the only accuracy that passed its checks under PGD at eps 8/255: 50.0 %")
    both = plain(audit_of([masked, sound, model("other", 0.9, 0.3)]))
    assert "sound keeps the highest accuracy that passed its checks" in both
    assert "masked" not in both
    all_of = plain(audit_of([masked, untrusted(sound)]))
    assert all_of.startswith("No accuracy under PGD at eps 8/255 can be believed: that of masked and sound failed a")
    assert "falls from 94.0 % to 2.0 %" in plain(audit_of([untrusted(model("masked", 0.94, 0.02)), sound]))
    # Images outside their ball are no attack at all.
    assert "falls" not in plain(audit_of([untrusted(model("broken", 0.93, 0.02), "bounds"), sound]))


def test_numbers_that_were_not_checked_and_models_that_are_unreliable_are_not_praised_for_them() -> None:
    loose, good = model("loose", 0.9, 0.7), model("good", 0.9, 0.5)
    loose.robust.pgd["8/255"].unchecked = ["Not made."]
    assert "loose keeps the highest accuracy under PGD" in plain(audit_of([loose, good]))
    assert "(clean 90.0 %, 500 images), which not every check has confirmed. Why" in plain(audit_of([loose, good]))
    assert "which not every check has confirmed" in plain(audit_of([loose]))
    assert "confirmed" not in plain(audit_of([good, model("other", 0.9, 0.3)]))
    loose.unreliable = ["Its answers depend on the batch."]
    assert "loose" not in plain(audit_of([loose, good]))
    assert plain(audit_of([loose])).startswith("No model has both a clean and a robust accuracy that may be believed.")


def test_models_that_guess_are_told_and_not_praised() -> None:
    guess, good = model("guess", 0.1, 0.1), model("good", 0.9, 0.5)
    assert plain(audit_of([guess, good])).startswith("good keeps an accuracy of 50.0 % [46, 54] under PGD at eps")
    notes = [words(note) for note in cautions(audit_of([guess, good]))]
    assert notes == [
        "guess classifies no better than guessing would, as far as 500 images can tell (10.0 %, 10 classes)."
    ]
    shown = plain(audit_of([guess, model("other", 0.11, 0.2)]))
    assert shown.startswith(
        "None of two models classifies better than guessing would (clean 10-12 %), so accuracy under"
    )
    assert plain(audit_of([guess])).startswith("guess classifies no better than guessing would (clean 10 %), so")


def test_a_model_of_one_class_is_told_and_not_praised() -> None:
    constant = model("constant", 0.5, 0.5, k=2)
    constant.clean.confusion = [[400, 0], [100, 0]]
    constant.clean.accuracy = wilson_interval(400, 500)
    result = audit_of([constant, model("good", 0.9, 0.5, k=2)], k=2)
    assert one_class(constant, result) == "c0"
    assert guesses(constant, result)
    assert plain(result).startswith("good keeps an accuracy of 50.0 %")
    assert words(cautions(result)[0]) == "constant answers “c0” to every image (80.0 % of them rightly)."
    constant.clean.confusion = None
    assert not guesses(constant, result)
    notice = Notice(subject="constant", kind="one-class", text="It answers one class.")
    noticed = result.model_copy(update={"notices": [notice]})
    assert words(cautions(noticed)[0]) == "constant answers one class to every image (80.0 % of them rightly)."
    only = model("only", 1.0, 0.5, k=2)
    only.clean.confusion = [[500, 0], [0, 0]]  # images of one class: the answer is right
    assert one_class(only, result) is None


def test_accuracy_of_the_commonest_class_is_guessing() -> None:
    skewed = model("skewed", 0.5, 0.5, k=2)
    skewed.clean.confusion = [[440, 10], [48, 2]]
    skewed.clean.accuracy = wilson_interval(442, 500)
    assert guesses(skewed, audit_of([skewed], k=2))
    skewed.clean.confusion = [[400, 50], [10, 40]]  # less accurate, and it knows something
    assert not guesses(skewed, audit_of([skewed], k=2))


def test_failed_models_and_missing_attacks() -> None:
    nothing = Interval(value=None)
    failed = model("failed", 0.9, None, failed=Failure(stage="attacks", why="its forward asserts."))
    failed.clean.accuracy, failed.clean.confusion, failed.clean.n = nothing, None, 0
    good = model("good", 0.9, 0.5)
    shown = plain(audit_of([failed, good]))
    assert shown.startswith("good keeps an accuracy of 50.0 %")
    assert words(cautions(audit_of([failed, good]))[0]) == (
        "failed could not be audited to the end. Attacks: its forward asserts."
    )
    assert plain(audit_of([failed])).startswith("Neither counterfactuals nor robust accuracy")
    assert plain(audit_of([])).startswith("Neither counterfactuals nor robust accuracy")


def test_the_radius_told_is_one_that_most_models_met_and_l2_stands_in_for_linf() -> None:
    half, good = model("half", 0.9, 0.8), model("good", 0.9, 0.5)
    half.robust.pgd["2/255"] = half.robust.pgd.pop("8/255").model_copy(update={"eps": 2 / 255})
    good.robust.pgd["2/255"] = good.robust.pgd["8/255"].model_copy(update={"eps": 2 / 255})
    assert "half keeps the highest accuracy under PGD at eps 2/255: 80.0 %" in plain(audit_of([half, good]))
    for one in (half, good):
        one.robust.pgd_l2 = {"0.5": next(iter(one.robust.pgd.values())).model_copy(update={"norm": "L2"})}
        one.robust.pgd = {}
    assert "under PGD in L2 at eps 0.5" in plain(audit_of([half, good]))


def test_a_few_images_tell_nothing() -> None:
    shown = plain(audit_of([model("a", 1.0, 0.0, n=2, k=2), model("b", 1.0, 0.5, n=2, k=2)], k=2))
    assert "highest" not in shown
    assert "fall" not in shown
    assert shown.startswith("None of two models classifies better than guessing")


def test_numbers_that_nobody_checked_are_said_to_be_so() -> None:
    unchecked = model("a", 0.9, 0.5)
    unchecked.robust.trusted = None
    assert "No trust check was made of the robust accuracy of a:" in words(distrust(audit_of([unchecked]))[0])
    assert distrust(audit_of([model("a", 0.9, 0.5)])) == []


def test_only_the_first_reasons_of_distrust_stand_before_the_numbers() -> None:
    doubted = model("a", 0.9, 0.5)
    doubted.robust.pgd["8/255"].untrusted = [f"Reason {i}." for i in range(4)]
    doubted.robust.ensemble["8/255"] = doubted.robust.pgd["8/255"].model_copy(update={"untrusted": ["Reason 9."]})
    assert [words(note) for note in distrust(audit_of([doubted]))] == [
        "The robust accuracy of a under PGD and Ensemble is untrusted. Reason 0. Reason 1. 3 more reasons."
    ]


def test_a_model_whose_one_class_is_told_by_a_check_is_told_once() -> None:
    constant = untrusted(model("constant", 0.1, 0.1), "one-class")
    assert cautions(audit_of([constant])) == []


def test_ranked_models_of_equal_index_share_their_place(results: AuditResult) -> None:
    same = change(results, trades_small={"index": 61.0}, plain={"index": 12.0})
    assert plain(same).startswith("trades and trades-small give the most meaningful")
    assert plain(same).endswith("plain and shortcut share the last place.")
    zero = change(results, **{n: {"index": 0.0} for n in ("trades", "trades_small", "plain", "shortcut")})
    assert plain(zero).startswith("No counterfactuals are meaningful: the index of trades, trades-small, plain and")


def test_a_first_place_does_not_hide_a_model_that_guesses(results: AuditResult) -> None:
    clean = results.models[0].clean.model_copy(update={"confusion": [[67, 66, 67]] * 3})
    shown = plain(change(results, trades={"clean": clean}))
    doubted = plain(change(results, trades={"unreliable": ["Batch."]}))
    assert "(index 61 [56, 66]), but nothing measured of it may be believed; shortcut is last" in doubted
    assert "(index 61 [56, 66]), but it classifies no better than guessing would; shortcut is last" in shown


shares = st.integers(0, 20).map(lambda i: i / 20)


@given(
    st.lists(st.tuples(shares, shares | st.none(), st.booleans(), st.sampled_from([4, 20, 500])), max_size=6),
    st.sampled_from([2, 4, 10]),
)
@settings(max_examples=200, deadline=None)
def test_no_headline_is_stronger_than_its_numbers(rows: list[tuple[float, float | None, bool, int]], k: int) -> None:
    models = []
    for i, (clean, robust, doubted, n) in enumerate(rows):
        one = model(f"model-{i}", clean, robust, n, min(k, n))
        models.append(untrusted(one) if doubted and robust is not None else one)
    result = audit_of(models, k)
    shown = plain(result)
    assert "nan" not in shown
    assert shown.endswith(".")
    by_name = {m.name: m for m in models}
    for name in re.findall(r"(model-\d) keeps the highest", shown):
        best = by_name[name].robust.pgd["8/255"]
        assert not best.untrusted
        assert not guesses(by_name[name], result)
        assert best.robust_accuracy.value
        for other in models:
            attack = other.robust.pgd.get("8/255")
            if other.name != name and attack and not attack.untrusted and not guesses(other, result):
                assert attack.robust_accuracy.high < best.robust_accuracy.low
        assert (by_name[name].clean.accuracy.value or 0) >= 0.5
    for name in re.findall(r"(model-\d)(?:,| and| keep| keeps)", shown):
        assert name in by_name
    told = re.search(r"from ([\d.-]+) % to ([\d.-]+) %", shown)
    if told:
        low_clean, high_robust = float(told[1].split("-")[0]), float(told[2].split("-")[-1])
        assert high_robust < low_clean


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=2, max_size=5))
@settings(max_examples=60, deadline=None)
def test_nobody_is_named_best_beside_an_equal_index(places: list[tuple[int, int]]) -> None:
    models = [
        model(f"model-{i}", 0.9, 0.5, index=20.0 * index, rank=rank, index_interval=(0.0, 100.0))
        for i, (index, rank) in enumerate(places)
    ]
    found = re.match(r"(model-\d) gives the most", plain(audit_of(models)))
    if found:
        best = next(m for m in models if m.name == found[1])
        assert all(m.index != best.index for m in models if m is not best)
