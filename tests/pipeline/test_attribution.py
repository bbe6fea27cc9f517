"""Attribution maps in an audit: rows, pictures and notes, with and without masks, and where no gradient leads back."""

from dataclasses import replace
from pathlib import Path

import pytest
from support_small_audit import by_brightness, small_audit

from audit.config import AttributionConfig
from audit.gate.policy import metrics_of
from audit.gate.ranges import range_of
from audit.pipeline.attribution import attribute_models, save_attributions, with_maps_of
from audit.pipeline.robustness import measure_models
from audit.results import AuditResult, Components, Environment, ModelResult


def test_rows_pictures_and_notes(tmp_path: Path) -> None:
    pytest.importorskip("captum", reason="the extra 'attribution' is not installed")
    small = small_audit()
    asked = AttributionConfig(methods=("occlusion", "grad-cam", "integrated-gradients"), n=5, steps=4, window=0.3)
    config = small.context.config.model_copy(update={"attribution": asked})
    context = replace(small.context, config=config)
    (model,) = measure_models(context, small.images, [by_brightness("whole")]).models
    blind = replace(model, classifier=by_brightness("blind"), blind="Nothing leads back.")
    found = attribute_models(context, small.images, [model, blind], None)
    assert not found.lost
    assert [one.method for one in found.models["blind"].found] == ["occlusion"]
    assert {note.paths[0] for note in found.notes("blind")} == {
        "attributions.grad-cam",
        "attributions.integrated-gradients",
    }
    rows = with_maps_of(found, "whole", "images/whole")
    assert {"occlusion", "integrated-gradients"} <= {one.method for one in rows}
    assert all(one.n == len(one.examples) == 5 for one in rows)
    assert [share.region for share in rows[0].regions] == list(small.images.audited.regions)
    named = ModelResult(
        name="whole", rank=None, index=None, index_interval=None, components=Components(), weights_sha256="0",
        source="x", clean=model.clean, robust=model.robust, attributions=rows,
    )  # fmt: skip
    result = AuditResult(
        name="x", created="", complete=True, config={}, seed=0, classes=["a", "b"], data={}, models=[named],
        environment=Environment(versions={}, device="cpu", platform=""),
    )  # fmt: skip
    save_attributions(result, found, tmp_path)
    assert all((tmp_path / example.map_image).is_file() for one in rows for example in one.examples)
    numbers = metrics_of(named)
    assert "attributions.occlusion.similarity" in numbers
    assert all(range_of(path) is not None for path in numbers if path.startswith("attributions."))


def test_nothing_is_drawn_unless_it_is_asked_for() -> None:
    small = small_audit()
    assert not attribute_models(small.context, small.images, [], None).models
