"""The report and the console say how each model was given its images, who said so, and what else was tried."""

from html import unescape
from pathlib import Path
from types import ModuleType

from audit.metrics.intervals import wilson_interval
from audit.report.build import report_pages
from audit.report.provenance import best_other, input_line, numbers, settings, tried
from audit.results import AuditResult, ModelInput, ModelResult, Reading


def described(support_results: ModuleType, folder: Path) -> AuditResult:
    result: AuditResult = support_results.example_audit(folder, models=["plain", "trades"], n_queries=0)
    for model in result.models:
        model.input = ModelInput(
            size=(224, 224), channels=3, mean=[0.485, 0.456, 0.406], std=[0.5] * 3, weights="r18.pt: state_dict_ema",
            classes=["healthy", "<opacity>", "cardiomegaly"],
            origins={"size": "timm", "channels": "checkpoint", "mean": "timm", "std": "default", "classes": "data"},
        )  # fmt: skip
    result.models[0].sanity = [
        Reading(name="as audited", assumed=True, accuracy=wilson_interval(110, 200)),
        Reading(name="no normalisation", assumed=False, accuracy=wilson_interval(60, 64), p_value=0.2),
        Reading(
            name="28 x 28 pixels", assumed=False, accuracy=wilson_interval(165, 200), p_value=1e-9, better=True,
            settings={"input_size": 28},
        ),
        Reading(name="7 x 7 pixels", assumed=False, accuracy=wilson_interval(0, 0), not_tried="it is <too> small"),
    ]  # fmt: skip
    return result


def test_the_page_shows_every_setting_with_its_origin(support_results: ModuleType, tmp_path: Path) -> None:
    page = unescape(report_pages(described(support_results, tmp_path), tmp_path)["report.html"])
    own = page[page.index('id="provenance"') :]
    for part in (
        "224 x 224", "timm's default", "0.485, 0.456, 0.406", "nobody gave any", "as the data",
        "r18.pt: state_dict_ema",
        "<opacity>", "28 x 28 pixels", "82.5", "55.0", "< 0.001", "better", "not tried: it is <too> small",
    ):  # fmt: skip
        assert part in own, part
    # Not only inside the configuration, which is closed.
    assert own.index("0.485, 0.456, 0.406") < own.index("<details>")


def test_what_comes_from_elsewhere_is_escaped(support_results: ModuleType, tmp_path: Path) -> None:
    page = report_pages(described(support_results, tmp_path), tmp_path)["report.html"]
    assert "<opacity>" not in page
    assert "<too>" not in page


def test_results_of_an_audit_without_either_make_no_table(support_results: ModuleType, tmp_path: Path) -> None:
    page = report_pages(support_results.example_audit(tmp_path, models=["plain"], n_queries=0), tmp_path)["report.html"]
    assert "How each model was given the images" not in page
    assert "Would another reading" not in page


def test_a_better_reading_comes_before_a_lucky_one(support_results: ModuleType, tmp_path: Path) -> None:
    model = described(support_results, tmp_path).models[0]
    best = best_other(model)
    assert best is not None
    assert best.name == "28 x 28 pixels"
    assert tried(model) == 2
    model.sanity = model.sanity[:1]
    assert best_other(model) is None
    assert tried(model) == 0


def test_a_line_for_the_console_tells_all_of_it(support_results: ModuleType, tmp_path: Path) -> None:
    model: ModelResult = described(support_results, tmp_path).models[0]
    assert input_line(model) == (
        "Input of plain: 224 x 224 (timm's default); 3 channels (checkpoint); mean 0.485, 0.456, 0.406 (timm's "
        "default); std 0.5 (nobody gave any); classes healthy, <opacity>, cardiomegaly (as the data); weights r18.pt: "
        "state_dict_ema"
    )
    assert model.input is not None
    model.input.origins["std"] = "timm"
    assert "mean 0.485, 0.456, 0.406, std 0.5 (timm's default);" in input_line(model)
    model.input = None
    assert input_line(model) == ""


def test_many_classes_are_cut_and_numbers_are_short(support_results: ModuleType, tmp_path: Path) -> None:
    model = described(support_results, tmp_path).models[0]
    assert model.input is not None
    model.input.classes = [f"c{i}" for i in range(100)]
    shown = {one.heading: one.value for one in settings(model.input)}
    assert shown["Classes, in the order of its outputs"].endswith("c11, ... (100 classes)")
    assert numbers([0.0, 0.0, 0.0]) == "0"
    assert numbers([1 / 255]) == "0.003922"
