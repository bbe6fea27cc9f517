"""A gallery that is too large for one file: files beside the report, each of which needs nothing else."""

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from audit.report import build, gallery
from audit.storage.output import MANIFEST, record


def test_too_many_images_for_one_file_stand_in_files_beside_it(
    support_results: ModuleType, open_page: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    results = support_results.write_audit(
        tmp_path, support_results.example_audit(tmp_path, ["plain", "shortcut"], n_queries=8, size=32)
    )
    (tmp_path / MANIFEST).write_text('{"files": {}}')
    whole = build.render_report(results).stat().st_size
    views = whole // 16  # two or three query images
    monkeypatch.setattr(gallery, "GALLERY_BYTES", views)
    report, *further = build.render_files(results)
    record(report, *further)
    files = sorted(tmp_path.glob("report*.html"))
    assert len(files) > 2
    assert report.stat().st_size < whole - 2 * views
    shown = []
    for file in files:
        html = file.read_text(encoding="utf-8")
        links = set(re.findall(r'<a href="(report[^"#]*)#images"', html))
        assert links == {one.name for one in files if one != file}
        page = open_page(file)
        shown += [one.get_attribute("aria-label") for one in page.locator("article.query").all()]
        assert page.locator("#tools").is_visible()
    assert sorted(shown) == [f"Query image opacity-00{i}" for i in range(8)]
    page = open_page(files[0], java_script_enabled=False)
    assert page.locator("nav[aria-label='Files of query images']").is_visible()
    monkeypatch.undo()
    record(*build.render_files(results))
    assert sorted(tmp_path.glob("report*.html")) == [report]  # those of before, which nothing links to, are gone


def test_a_file_of_somebody_else_is_not_written_over(
    support_results: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    results = support_results.write_audit(tmp_path, support_results.example_audit(tmp_path, ["plain"], n_queries=3))
    (tmp_path / "report-2.html").write_text("mine")
    monkeypatch.setattr(gallery, "GALLERY_BYTES", 1)
    with pytest.raises(build.ResultsError, match="is no report of spruce-audit"):
        build.render_report(results)
    assert (tmp_path / "report-2.html").read_text() == "mine"
    assert not (tmp_path / "report.html").exists()
