"""What each model decides by: words that its numbers carry, and the picture that a stated rule chooses."""

import base64
import io
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from audit.metrics.intervals import wilson_interval
from audit.report.accounts import about, account, accounts
from audit.results import AuditResult, Comparison, ModelResult

FLIPS_LOST = {"undone": wilson_interval(1, 64), "alone": wilson_interval(40, 64)}
FLIPS_KEPT = {"undone": wilson_interval(60, 64), "alone": wilson_interval(0, 64)}


@pytest.fixture
def results(support_results: ModuleType, tmp_path: Path) -> AuditResult:
    return support_results.example_audit(tmp_path, n_queries=4, size=32)


def with_scores(model: ModelResult, **changes: Any) -> ModelResult:
    assert model.counterfactuals is not None
    return model.model_copy(update={"counterfactuals": model.counterfactuals.model_copy(update=changes)})


def with_region(model: ModelResult, name: str, **changes: Any) -> ModelResult:
    assert model.counterfactuals is not None
    rows = [row.model_copy(update=changes) if row.region == name else row for row in model.counterfactuals.regions]
    return with_scores(model, regions=rows)


def said(model: ModelResult, results: AuditResult) -> str:
    found = " ".join(account(model, results))
    return re.sub(r"<[^>]+>", "", found).replace("\N{NO-BREAK SPACE}", " ")


def shortcut(results: AuditResult) -> ModelResult:
    return next(model for model in results.models if model.name == "shortcut")


def test_a_model_decides_by_a_region_only_where_its_flips_are_lost_without_it(results: AuditResult):
    unknown = said(shortcut(results), results)
    assert unknown.startswith("Its edits keep to the marker: 71 % of the edit lies there, on 1.2 % of the image.")
    lost = said(with_region(shortcut(results), "marker", mass_interval=(0.65, 0.77), **FLIPS_LOST), results)
    assert lost.startswith(
        "Decides by the marker: 71 % [65, 77] of the edit lies there, on 1.2 % of the image. Without that part "
        "2 % [0, 8] of its flips stay; that part alone keeps 62 % [50, 73] of them."
    )
    kept = said(with_region(shortcut(results), "marker", **FLIPS_KEPT), results)
    assert "Decides by" not in kept
    assert "But 94 % [85, 98] of its flips stay without that part" in kept
    few = said(with_region(shortcut(results), "marker", undone=wilson_interval(0, 3)), results)
    assert "Decides by" not in few  # 0 of 3 may be half of all


def test_a_share_that_chance_would_give_is_no_region_to_keep_to(results: AuditResult):
    for doubt in ({"p_value": 0.2}, {"mass_interval": (0.01, 0.9)}, {"mass": 0.01, "lift": 0.8}):
        model = with_region(shortcut(results), "marker", **doubt, **FLIPS_LOST)
        assert said(model, results).startswith("Its edits keep to no named region beyond chance")
    sound = with_region(results.models[0], "region", **FLIPS_LOST)
    assert said(sound, results).startswith("Decides by the region that carries the class: 62 % of the edit")
    assert said(with_scores(sound, regions=[]), results).startswith("No regions were given")


def test_what_weakens_an_account_is_part_of_it(results: AuditResult):
    model = results.models[0]
    low = model.counterfactuals.flip_ratio.model_copy(update={"value": 0.4})
    found = said(with_scores(model, flip_ratio=low, converged=0.25), results)
    assert "It was flipped on 40 % of the query images only" in found
    assert "3 of 4 edits still shrank when the search ended; smaller ones may exist." in found
    assert "still shrank" not in said(with_scores(model, converged=1.0), results)
    ruined = said(with_scores(model, unexplained="of 4 query images 3 do not flip"), results)
    assert ruined == (
        "No edit within the generator's range explains this model: of 4 query images 3 do not flip. On these 4 images "
        "it cannot be told apart from trades-small (higher with probability 0.83)."
    )


def test_models_that_cannot_be_told_apart_are_named_with_the_images_that_would_do_it(results: AuditResult):
    names = [model.name for model in results.models]
    level = [Comparison(a=names[0], b=other, probability=0.8, images_needed=183) for other in names[1:]]
    one = results.model_copy(update={"comparisons": level})
    assert "On these 4 images it cannot be told apart from trades-small (about 180 would be needed), plain" in said(
        results.models[0], one
    )
    assert "cannot be told apart from trades (about 180 would be needed)." in said(results.models[1], one)
    many = results.model_copy(update={"comparisons": [c.model_copy(update={"images_needed": 10**6}) for c in level]})
    assert "cannot be told apart from trades (more than 10000 would be needed)." in said(results.models[1], many)
    assert "told apart" not in said(results.models[1], results.model_copy(update={"comparisons": []}))
    assert [about(n) for n in (7, 64, 183, 1234, 10**6)] == [
        "about 7",
        "about 64",
        "about 180",
        "about 1200",
        "more than 10000",
    ]


def test_the_picture_is_the_one_of_the_stated_rule(results: AuditResult, tmp_path: Path):
    model = with_region(shortcut(results), "marker", **FLIPS_LOST)
    model.queries[1].l1 = 0.2  # the same share of a larger edit: its marker changes most
    model.queries[2].l1, model.queries[2].ruined = 0.9, True
    model.queries[3].l1, model.queries[3].flipped = 0.9, False
    (one,) = accounts(results.model_copy(update={"models": [model]}), [model], tmp_path)
    assert one.clearest is not None
    assert one.clearest.row.query == model.queries[1].query
    assert one.clearest.why == "the query image on which the marker changes most"
    assert [shot.what for shot in one.clearest.shots] == [
        "the image", "before", "just before it flips", "after", "difference",
    ]  # fmt: skip
    uri = one.clearest.shots[1].uri
    enlarged = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("L"))
    whole = np.asarray(Image.open(tmp_path / str(results.queries[1].inversion_image)).convert("L"))
    mask = np.asarray(Image.open(tmp_path / results.queries[1].region_images["marker"])) > 127
    side = len(enlarged)
    assert enlarged.shape == (side, side)
    assert side < 16
    places = [
        (y, x)
        for y in range(33 - side)
        for x in range(33 - side)
        if (whole[y : y + side, x : x + side] == enlarged).all()
    ]
    assert any(mask[y : y + side, x : x + side].sum() == mask.sum() for y, x in places)
    assert "flips at step 22" in one.clearest.trace


def test_a_ruin_is_not_shown(results: AuditResult, tmp_path: Path):
    model = with_scores(results.models[0], unexplained="of 4 query images 3 do not flip")
    (one,) = accounts(results.model_copy(update={"models": [model]}), [model], tmp_path)
    assert one.clearest is None
