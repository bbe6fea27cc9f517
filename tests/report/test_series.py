"""Several audits beside each other: what changed is told where the gate may compare it, and else why not."""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from audit.cli import app
from audit.errors import ConfigError
from audit.gate.between import between
from audit.report.build import render_report
from audit.report.series import Listed, series_page
from audit.report.trend import Point, trend_chart
from audit.results import AuditResult, Interval

IMAGES = {"audited": 500, "audited_sha256": "11" * 32}


@pytest.fixture
def first(support_results: ModuleType, tmp_path: Path) -> AuditResult:
    found = support_results.example_audit(tmp_path / "a", ["trades", "plain"], n_queries=2, size=16)
    return found.model_copy(update={"data": found.data | IMAGES})


def otherwise(audit: AuditResult, **changes: Any) -> AuditResult:
    """The audit with another clean accuracy of its first model, and whatever `changes` says."""
    model = audit.models[0]
    clean = model.clean.model_copy(update={"accuracy": Interval(value=0.5, low=0.45, high=0.55, n=500)})
    models = [model.model_copy(update={"clean": clean}), *audit.models[1:]]
    return audit.model_copy(update={"models": models, **changes})


def page(*audits: AuditResult) -> str:
    return series_page([Listed(f"run-{i}", audit) for i, audit in enumerate(audits, start=1)], between)


def told(html: str, title: str) -> list[str]:
    """What the row of the first model's number `title` says in every audit, as running text."""
    row = re.search(rf'<th scope="row" class="pin">{title}</th>(.*?)</tr>', html, re.DOTALL)
    assert row is not None
    cells = re.findall(r"<td[^>]*>(.*?)</td>", row[1], re.DOTALL)
    return [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in cells]


def chart(html: str, title: str) -> str:
    found = re.search(rf"<figcaption>{title}</figcaption>(.*?)</figure>", html, re.DOTALL)
    assert found is not None
    return found[1]


def test_a_change_is_told_with_its_interval(first: AuditResult):
    html = page(first, otherwise(first))
    before, after = told(html, "Clean accuracy")
    assert "change" not in before
    assert re.fullmatch(
        r"50\.0.% \[45\.0, 55\.0\] change \N{MINUS SIGN}38\.5 \[\N{MINUS SIGN}[\d.]+, \N{MINUS SIGN}[\d.]+\]", after
    )
    assert "tier 1 of 2" in told(html, "Index")[0]
    assert "<strong>trades</strong>: Clean accuracy" in html
    assert "changed by more than chance" in html


def test_what_may_not_be_compared_says_why_and_has_no_line(first: AuditResult):
    other = otherwise(first, generator_sha256="ef" * 32)
    html = page(first, other)
    assert told(html, "Index")[1].endswith("not compared (1)")
    assert "change" in told(html, "Clean accuracy")[1]
    assert re.search(r'<li id="apart-1">it was measured with another generator\..*?run-2.*?Index', html, re.DOTALL)
    assert "<polyline" not in chart(html, "Index")
    assert chart(html, "Clean accuracy").count("<polyline") == 2


def test_audits_that_agree_among_themselves_are_joined_though_the_first_differs(first: AuditResult):
    other = first.model_copy(update={"generator_sha256": "ef" * 32})
    # Of each model from the second audit to the third.
    assert chart(page(first, other, other), "Index").count("<polyline") == 2


def test_a_model_that_failed_or_is_untrusted_is_not_compared(first: AuditResult):
    model = first.models[0]
    pgd = {at: one.model_copy(update={"untrusted": ["Nobody believes it."]}) for at, one in model.robust.pgd.items()}
    doubted = model.model_copy(update={"robust": model.robust.model_copy(update={"pgd": pgd, "ensemble": {}})})
    html = page(first, first.model_copy(update={"models": [doubted, *first.models[1:]]}))
    assert "it is untrusted here: Nobody believes it." in html
    unreliable = model.model_copy(update={"unreliable": ["Its answers depend on the batch."]})
    html = page(first, first.model_copy(update={"models": [unreliable, *first.models[1:]]}))
    assert "here, whatever was measured of trades is unreliable: Its answers depend on the batch." in html
    assert told(html, "Clean accuracy")[1].endswith("not compared (1)")


def test_no_model_in_both(first: AuditResult):
    renamed = [one.model_copy(update={"name": f"{one.name}-2"}) for one in first.models]
    html = page(first, first.model_copy(update={"models": renamed}))
    assert "no model has a number in both" in html
    assert "not audited" in html


def test_names_are_shown_as_they_are(first: AuditResult):
    models = [one.model_copy(update={"name": "<b>&"}) for one in first.models[:1]]
    html = series_page([Listed("<i>", first.model_copy(update={"models": models}))] * 2, between)
    assert "<b>&" not in html
    assert "<i>" not in html


def test_a_missing_audit_breaks_the_line():
    point = Point(0.5, None, None, joined=True)
    drawn = trend_chart([(0, [point, None, point, point])], 4, "1", "label")
    assert drawn.count("<polyline") == 1
    assert drawn.count('class="marker"') == 3


@pytest.fixture
def series(support_results: ModuleType, tmp_path: Path) -> list[Path]:
    files = []
    for i, name in enumerate(("january", "february", "march")):
        made = support_results.example_audit(tmp_path / name, ["trades", "plain"], n_queries=2, size=16)
        made = made.model_copy(update={"data": made.data | IMAGES})
        files.append(support_results.write_audit(tmp_path / name, otherwise(made) if i == 1 else made))
    render_report(files[0])
    return files


def rendered(series: list[Path], out: Path) -> Path:
    done = CliRunner().invoke(app, ["report", *map(str, series), "--out", str(out)])
    assert done.exit_code == 0, done.output
    return out


def test_the_command_links_the_reports_that_are_there(series: list[Path], tmp_path: Path):
    html = rendered(series, tmp_path / "pages" / ".." / "series.html").read_text(encoding="utf-8")
    assert '<a href="january/report.html" aria-label="Report of january">open</a>' in html
    assert html.count("not beside it") == 2
    assert html.index("1 · january") < html.index("2 · february") < html.index("3 · march")


def test_the_command_replaces_its_own_pages_only(series: list[Path], tmp_path: Path):
    page = rendered(series, tmp_path / "series.html")
    rendered(series, page)
    for taken in (series[0], series[0].with_name("report.html")):
        before = taken.read_bytes()
        done = CliRunner().invoke(app, ["report", *map(str, series), "--out", str(taken)])
        assert isinstance(done.exception, ConfigError)
        assert taken.read_bytes() == before
    done = CliRunner().invoke(app, ["report", str(series[0]), str(series[0])])
    assert isinstance(done.exception, ConfigError)
    assert "named twice" in str(done.exception)


def test_nothing_runs_out_of_the_page(open_page: Callable[..., Any], series: list[Path], tmp_path: Path):
    opened = open_page(rendered(series, tmp_path / "series.html"))
    for width in (1280, 390, 360):
        opened.set_viewport_size({"width": width, "height": 900})
        assert opened.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(open_page: Callable[..., Any], series: list[Path], tmp_path: Path, scheme: str):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    opened = open_page(rendered(series, tmp_path / "series.html"), color_scheme=scheme, bypass_csp=True)
    found = axe.Axe().run(opened).response["violations"]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"][:3]]) for one in found] == []


def test_it_is_printed_light_and_needs_no_scripts(open_page: Callable[..., Any], series: list[Path], tmp_path: Path):
    page = rendered(series, tmp_path / "series.html")
    opened = open_page(page, 1032, color_scheme="dark", java_script_enabled=False)
    assert opened.locator("table.series").count() == 2
    opened.emulate_media(media="print", color_scheme="dark")
    assert opened.locator("body").evaluate("one => getComputedStyle(one).backgroundColor") == "rgb(255, 255, 255)"
