"""An audit says of which classes its query images are where these are unequally divided."""

from pathlib import Path
from types import ModuleType

import pytest

from audit.pipeline.mixture import mixture_notices
from audit.results import AuditResult


@pytest.fixture
def audit(support_results: ModuleType, tmp_path: Path) -> AuditResult:
    return support_results.example_audit(tmp_path, ["trades", "plain"], n_queries=8, size=16)


def told(audit: AuditResult, heart: int, *sources: str) -> list[tuple[str, str]]:
    """The notices where `heart` of the eight query images are of the class cardiomegaly and the others of opacity."""
    queries = [
        one.model_copy(update={"label": "cardiomegaly" if i < heart else "opacity"})
        for i, one in enumerate(audit.queries)
    ]
    return [(one.subject, one.text) for one in mixture_notices(audit.models, queries, sources)]


def test_an_unequal_mixture_is_told_once_with_how_to_mend_it(audit: AuditResult):
    ((subject, text),) = told(audit, 2, "opacity", "cardiomegaly")
    assert subject == "audit"
    assert "(6 of opacity, 2 of cardiomegaly)" in text
    assert "queries.n = 4 gives every class the same share" in text


def test_a_class_without_an_image_is_told(audit: AuditResult):
    ((_, text),) = told(audit, 0, "opacity", "cardiomegaly")
    assert "(8 of opacity, 0 of cardiomegaly)" in text
    assert "queries.classes" in text


def test_about_equal_shares_or_one_class_are_not(audit: AuditResult):
    assert told(audit, 3, "opacity", "cardiomegaly") == []
    assert told(audit, 8, "cardiomegaly") == []
    assert mixture_notices(audit.models, [], ["opacity", "cardiomegaly"]) == []


def test_a_model_with_images_of_its_own_has_a_notice_of_its_own(audit: AuditResult):
    paired, alone = audit.models
    some = alone.model_copy(update={"unpaired": True, "queries": alone.queries[4:]})
    audit = audit.model_copy(update={"models": [paired, some]})
    assert [subject for subject, _ in told(audit, 4, "opacity", "cardiomegaly")] == ["plain"]
