"""Every shape of a report in a real browser: nothing runs out of the page, all can be read, by axe-core's rules too."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import support_labels

from audit.pipeline.runner import run_audit
from audit.report.build import render_report

SHAPES = ("full", "one", "twelve", "robust", "ten", "labels")
WIDTHS = (1280, 390, 360)
MEASURE = """async () => {
  document.querySelectorAll('details').forEach(one => { one.open = true });
  const images = [...document.images];
  images.forEach(one => { one.loading = 'eager' });
  const broken = await Promise.all(images.map(one => one.decode().then(() => 0, () => 1)));
  const first = document.querySelector('.ranking td.index')
    || document.querySelector(':is(#ranking, #accuracy) .scroll tbody th + td');
  const tables = [...document.querySelectorAll('.scroll')].filter(one => one.scrollWidth > one.clientWidth);
  return {
    page: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    body: document.body.scrollWidth - document.body.clientWidth,
    tables: tables.map(one => one.getAttribute('aria-label') || one.getAttribute('aria-labelledby')),
    first: first.getBoundingClientRect().right,
    images: images.length, broken: broken.reduce((a, b) => a + b, 0),
    cut: [...document.querySelectorAll('.inputs small')].filter(one =>
      !one.textContent.includes(' ') && one.getClientRects().length > 1).length,
    outlines: [...document.querySelectorAll('svg.outline use')].filter(one => one.getBBox().width > 0).length,
  };
}"""


@pytest.fixture(scope="module")
def reports(support_results: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in SHAPES}
    made = support_results
    audits = {
        "full": made.example_audit(folders["full"]),
        "one": made.example_audit(folders["one"], ["plain"], n_queries=2),
        "twelve": made.example_audit(
            folders["twelve"], ["trades", "plain", *(f"candidate-{i}" for i in range(10))], n_queries=9, size=16
        ),
        "robust": made.example_audit(folders["robust"], n_queries=0),
        "ten": made.ten_class_audit(folders["ten"]),
    }
    found = {name: render_report(made.write_audit(folders[name], audit)) for name, audit in audits.items()}
    config = support_labels.write_audit_files(folders["labels"])
    quick = config.read_text().replace("steps = 5", "steps = 1").replace("{ n = 8, square_queries = 20 }", "false")
    config.write_text(quick)
    run_audit(config, out=folders["labels"] / "out")
    return {**found, "labels": folders["labels"] / "out" / "report.html"}


@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_runs_out_of_the_page(open_page: Callable[..., Any], reports: dict[str, Path], shape: str) -> None:
    page = open_page(reports[shape])
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        found = page.evaluate(MEASURE)
        assert (found["page"], found["body"], found["broken"], found["cut"]) == (0, 0, 0, 0), (width, found)
        # Rank, model and index, or the first number where there is no index, are seen without scrolling.
        assert found["first"] <= width, (width, found)
        if width >= 1280:
            assert "trust-title" not in found["tables"]
            assert found["tables"] == [] or shape == "twelve", "a table has to be scrolled on a desk"
    assert found["images"] > 0 or shape == "robust"
    assert found["outlines"] > 0 or shape in ("robust", "ten", "labels")


@pytest.mark.parametrize(
    ("shape", "scheme"), [("full", "light"), ("full", "dark"), ("ten", "light"), ("ten", "dark"), ("labels", "light")]
)
def test_axe_finds_nothing(open_page: Callable[..., Any], reports: dict[str, Path], shape: str, scheme: str) -> None:
    """The rules of axe-core (MPL-2.0), which comes with the tests' own package and is no part of this one."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    page = open_page(reports[shape], color_scheme=scheme, bypass_csp=True)
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    page.add_style_tag(content=".query { content-visibility: visible }")  # axe looks at colours by place: none may move
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"][:3]]) for one in found] == []


A4_LANDSCAPE = 1032
"""Pixels between the margins of a printed page."""


@pytest.mark.parametrize("shape", SHAPES)
def test_the_printed_page_is_light_and_whole(
    open_page: Callable[..., Any], reports: dict[str, Path], shape: str
) -> None:
    page = open_page(reports[shape], A4_LANDSCAPE, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    dark = "getComputedStyle(document.querySelector('.findings') || document.body).backgroundColor"
    assert page.evaluate(dark) in ("rgb(251, 240, 231)", "rgb(255, 255, 255)")
    assert not any(one.is_visible() for one in page.locator("nav, button, select, input").all())
    wide = "[...document.querySelectorAll('table')].filter(one => one.getBoundingClientRect().right > innerWidth + 1)"
    assert page.evaluate(f"{wide}.map(one => one.className)") == []
