"""The gallery in a real browser: filters, sorting, the slider, keys, and nothing fetched, by Playwright."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from audit.report.build import render_report


@pytest.fixture(scope="module")
def report(support_results: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("gallery")
    results = support_results.example_audit(root, ["plain", "shortcut"], n_queries=8, size=32)
    plain, shortcut = results.models
    plain.queries[1].wrong, plain.queries[4].l1, shortcut.queries[5].l1 = True, 0.5, 0.4
    return render_report(support_results.write_audit(root, results))


@pytest.fixture
def page(open_page: Callable[..., Any], report: Path) -> Any:
    return open_page(report)


def visible(page) -> list[str]:
    return [one.get_attribute("aria-label") for one in page.locator("article.query").all() if one.is_visible()]


def test_images_are_chosen_and_sorted(page):
    assert len(visible(page)) == 6  # the others open on demand
    page.select_option("[name=model]", "plain")
    assert len(visible(page)) == 8
    assert not page.locator(".column[data-model=shortcut]").first.is_visible()
    page.select_option("[name=outcome]", "not flipped")
    assert visible(page) == ["Query image opacity-003"]
    assert page.locator("#tools output").inner_text() == "1 of 8 query images"
    page.select_option("[name=outcome]", "")
    page.select_option("[name=answer]", "wrong")
    assert visible(page) == ["Query image opacity-001"]
    page.select_option("[name=answer]", "")
    page.select_option("[name=sort]", "l1")
    assert visible(page)[0] == "Query image opacity-004"
    page.select_option("[name=model]", "")
    assert visible(page)[:2] == ["Query image opacity-004", "Query image opacity-005"]


def test_before_and_after_are_compared_by_slider_and_keys(page):
    page.get_by_role("button", name="Compare before and after: Query image opacity-000").press("Enter")
    dialog = page.get_by_role("dialog")
    assert dialog.get_by_role("heading").inner_text() == "Query image opacity-000"
    assert dialog.locator(".stack").count() == 2
    over = dialog.locator(".over").first
    after = over.get_attribute("src")
    page.locator("#wipe").focus()
    page.keyboard.press("Home")
    assert over.evaluate("e => getComputedStyle(e).clipPath") == "inset(0px 0px 0px 0%)"
    dialog.get_by_label("the semifactual").check()
    assert dialog.locator(".over").first.get_attribute("src") != after
    dialog.get_by_role("button", name="Next query image").click()
    assert dialog.get_by_role("heading").inner_text() == "Query image opacity-001"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert dialog.get_by_role("heading").inner_text() == "Query image opacity-002"
    assert dialog.locator("svg.spark").count() == 2
    page.keyboard.press("Escape")
    assert not dialog.is_visible()


def test_the_page_is_whole_without_scripts(open_page: Callable[..., Any], report: Path):
    page = open_page(report, java_script_enabled=False)
    assert not page.locator("#tools").is_visible()
    assert not page.locator("#viewer").is_visible()
    assert page.get_by_role("button").count() == 0
    assert len(visible(page)) == 6
