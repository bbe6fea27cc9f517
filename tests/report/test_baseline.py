"""The report of an audit with a baseline: every change with its interval, and the baseline named as such."""

from pathlib import Path
from types import ModuleType

import pytest

from audit.report.baseline import changes, signed
from audit.report.build import report_pages
from audit.results import AuditResult, Interval


@pytest.fixture
def joint(support_results: ModuleType, tmp_path: Path) -> AuditResult:
    found = support_results.example_audit(tmp_path, models=("trades", "plain"), n_queries=2, size=16)
    models = [m.model_copy(update={"role": "baseline" if m.name == "plain" else None}) for m in found.models]
    row = found.comparisons[0].model_copy(
        update={
            "difference": Interval(value=27.0, low=20.0, high=33.0, n=2),
            "components": {"realism": Interval(value=-0.02, low=-0.1, high=0.1, n=2)},
        }
    )
    return found.model_copy(update={"models": models, "comparisons": [row]})


def test_every_change_is_that_of_the_model_less_the_baseline(joint: AuditResult):
    (one,) = changes(joint)
    assert (one.model, one.baseline) == ("trades", "plain")
    assert list(one.cells) == ["Index", "Realism", "Clean, points", "PGD 8/255, points"]
    assert one.cells["Index"] == ('<span class="value"><b>+27.0</b></span> <span class="bounds">[+20.0, +33.0]</span>')
    assert "<b>" not in one.cells["Realism"]
    assert "\N{MINUS SIGN}0.02" in one.cells["Realism"]
    turned = joint.comparisons[0].model_copy(update={"a": "plain", "b": "trades"})
    (other,) = changes(joint.model_copy(update={"comparisons": [turned]}))
    assert "<b>\N{MINUS SIGN}27.0</b>" in other.cells["Index"]
    assert "[\N{MINUS SIGN}33.0, \N{MINUS SIGN}20.0]" in other.cells["Index"]


def test_a_share_is_told_in_points():
    assert "+2.0" in signed(Interval(value=0.02, low=-0.01, high=0.05), 100, 1)


def test_the_page_has_the_table_only_with_a_baseline(joint: AuditResult, tmp_path: Path):
    page = report_pages(joint, tmp_path)["report.html"]
    assert '<section id="baseline"' in page
    assert "plain <small>baseline</small>" in page
    alone = joint.model_copy(update={"models": [m.model_copy(update={"role": None}) for m in joint.models]})
    assert 'id="baseline"' not in report_pages(alone, tmp_path)["report.html"]
