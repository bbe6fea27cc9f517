"""Sentences and numbers: each shape of an audit has its verdict, and no number reads 'nan'."""

from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audit.report import text
from audit.results import AuditResult


@pytest.fixture(scope="module")
def results(support_results: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> AuditResult:
    return support_results.example_audit(tmp_path_factory.mktemp("audit"), n_queries=2, size=16)


def change(result: AuditResult, **by_name: dict) -> AuditResult:
    models = [m.model_copy(update=by_name.get(m.name.replace("-", "_"), {})) for m in result.models]
    return result.model_copy(update={"models": models})


@given(st.none() | st.floats(allow_nan=True, allow_infinity=True), st.integers(0, 6))
def test_no_number_reads_nan(value: float | None, digits: int):
    for shown in (text.number(value, digits), text.percent(value, digits), text.p_value(value)):
        assert shown
        assert "nan" not in shown
        assert "inf" not in shown


def test_small_numbers_keep_a_digit():
    assert text.number(2.1e-4, 2) == "2.1·10⁻⁴"
    assert text.number(0.0, 2) == "0.00"


def test_findings_tell_of_a_veto_once_and_with_its_reason(results: AuditResult):
    found = text.findings(change(results, shortcut={"index": 0.0, "veto": "its edits lie in 'marker'"}))
    assert [str(one) for one in found] == [
        "<strong>shortcut</strong> cannot be called meaningful: its edits lie in &#39;marker&#39;."
    ]


def test_findings_tell_what_weakens_the_ranking(results: AuditResult):
    assert text.findings(results) == []  # what each model decides by is told below, not among the warnings
    scores = results.models[2].counterfactuals
    assert scores is not None
    judge = scores.judges[0].model_copy(update={"rejects_inversion": 0.1})
    low = scores.flip_ratio.model_copy(update={"value": 0.4})
    weak = change(
        results,
        plain={"counterfactuals": scores.model_copy(update={"flip_ratio": low, "judges": [judge]}), "rank": 5},
    ).model_copy(update={"complete": False, "queries_asked": 48})
    notes = " ".join(text.findings(weak)).replace("\N{NO-BREAK SPACE}", " ")
    for words in ("did not finish", "2 of the 48", "no evidence"):
        assert words in notes
    ruined = scores.model_copy(update={"unexplained": "of 8 query images 6 do not flip"})
    (note,) = text.findings(change(results, plain={"counterfactuals": ruined}))
    assert note == "<strong>No edit within the generator's range explains <strong>plain</strong>.</strong>"


def test_models_without_index_come_last(results: AuditResult):
    broken = change(results, trades={"index": None, "rank": None})
    assert [m.name for m in text.in_order(broken)] == ["trades-small", "plain", "shortcut", "trades"]


def test_settings_read_like_toml():
    tables = {"data": {"path": "x", "phantom": {"k": 1}}, "classifiers": [{"a": 1}, {"a": 2}]}
    shown = text.as_toml({"seed": 0, "n": None, **tables})
    assert shown.splitlines()[:2] == ["seed = 0", "# n: not set"]
    assert "[data.phantom]\nk = 1" in shown
    assert shown.count("[[classifiers]]") == 2


def test_a_reader_is_told_whom_the_edits_explain(results: AuditResult):
    assert text.explained_images(results) == []
    assert text.explained_images(results.model_copy(update={"config": {"queries": 3}})) == []
    alone = change(results, plain={"unpaired": True})
    (note,) = text.explained_images(alone)
    assert "<strong>plain</strong> is explained on images of its own" in note
    both = text.explained_images(change(alone, trades={"unpaired": True}))
    assert "are explained on images of their own, since few common ones would have been left with them" in both[0]
    wrong = results.model_copy(update={"config": {**results.config, "queries": {"pick": "wrong"}}, "queries_asked": 9})
    few, kind = text.explained_images(wrong)
    assert few.startswith("2 of the 9 query images asked for were explained: those that all models misclassify, as")
    assert "lead to the class that they belong to" in kind


@pytest.mark.parametrize(
    ("settings", "local"),
    [
        ({"method": "spruce", "shrink": True, "shrink_local": True}, True),
        ({"method": ["spruce", "pixel"], "shrink": True, "shrink_local": True}, True),
        ({"method": ["pixel", "spruce"], "shrink": True, "shrink_local": True}, False),
        ({"method": "spruce", "shrink": False, "shrink_local": True}, False),
        ({"method": "spruce", "shrink": True}, False),  # of an earlier version
        (None, False),
    ],
)
def test_edits_are_called_local_where_they_are(results: AuditResult, settings: dict | None, local: bool):
    assert text.local_edits(results.model_copy(update={"config": {"counterfactual": settings}})) == local
