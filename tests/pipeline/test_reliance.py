"""From a reaction to results, pictures, report and gate; a model that fails there keeps everything else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from support_small_audit import Small, by_brightness, findings, measured, small_audit
from torch import Tensor, nn

from audit.gate.policy import metrics_of
from audit.gate.ranges import range_of
from audit.pipeline.assemble import assemble, save_all
from audit.pipeline.pictures import without_pictures
from audit.pipeline.reliance import Relied, measure_reliance
from audit.pipeline.robustness import Measured
from audit.reliance.spec import Intervention
from audit.report.build import report_pages
from audit.results import AuditResult

NEGATIVE = Intervention("token", {"": lambda images, strength: 1 - images}, (0.5, 1.0), "")
SAME = Intervention(
    "geometry", {"here": lambda images, strength: images, "there": lambda images, strength: images}, (2,), "degrees"
)
BOTH = {"same": SAME, "negative": NEGATIVE}


class Fails(nn.Module):
    """Passes images on until it is told to fail."""

    failing = False

    def forward(self, images: Tensor) -> Tensor:
        if self.failing:
            raise RuntimeError("out of order")
        return images


def relied_on(small: Small, *models: Measured) -> Relied:
    return measure_reliance(small.context, small.images, models, BOTH)


def test_what_turns_all_decisions_is_told_first_with_an_image(tmp_path: Path):
    small = small_audit()
    left, whole = measured(small, "left"), measured(small, "whole")
    relied = relied_on(small, left, whole)
    negative, same = relied.found["left"].interventions
    assert (negative.name, negative.worst.changed.value, same.worst.changed.value) == ("negative", 1, 0)
    result, page = _reported(small, relied, tmp_path, left, whole)
    row = next(m for m in result.models if m.name == "left").reliance
    assert row is not None
    example = row.interventions[0].example
    assert example is not None
    assert {example.before, example.after} == {"dark", "bright"}
    assert (tmp_path / example.image).is_file()
    assert (tmp_path / example.changed_image).is_file()
    assert row.interventions[1].example is None
    assert page.count("A negative of 0.5 changes 100") == 4  # headline and section, for both models
    assert "same (here) by 2 degrees changes most" in page
    assert 'id="reliance"' in page
    bare = without_pictures(result)
    assert all(row.example is None for model in bare.models if model.reliance for row in model.reliance.interventions)


def _reported(small: Small, relied: Relied, folder: Path, *models: Measured) -> tuple[AuditResult, str]:
    found = replace(findings(small, None, *models), relied=relied)
    result = assemble(small.context, found)
    save_all(result, found, folder)
    return result, report_pages(result, folder)["report.html"]


def test_regions_and_groups_are_measured_where_there_are_any(tmp_path: Path):
    small = small_audit()
    audited = small.images.audited
    mask = np.zeros((16, 16), dtype=bool)
    mask[:, :8] = True
    sites = tuple("north" if row % 4 < 2 else "south" for row in range(len(audited)))
    audited = replace(audited, regions={"region": lambda row: mask}, groups={"site": sites})
    small = small.with_images(audited=audited)
    config = small.context.config
    config = config.model_validate(config.model_dump() | {"reliance": {"min_group": 3, "clusters": 2}})
    small = replace(small, context=replace(small.context, config=config))
    left = measured(small, "left")
    relied = relied_on(small, left)
    found = {(row.part, row.treatment): row for row in relied.found["left"].regions}
    assert found["region", "exchanged"].follow.value == 1
    assert found["rest", "exchanged"].stay_right.value == 1
    assert {row.value for row in relied.found["left"].groups if row.column == "site"} == {"north", "south"}
    result, page = _reported(small, relied, tmp_path, left)
    assert "all but region" in page
    assert "site north" in page
    table = metrics_of(next(m for m in result.models if m.name == "left"))
    assert table["reliance.regions.region.rest.exchanged.stay_right"].value == 1
    assert table["reliance.groups.site.north.accuracy"].value == 1
    for name in ("regions.region.rest.exchanged.stay_right", "groups.site.north.accuracy", "groups.site.north.gap"):
        assert range_of(f"reliance.{name}") is not None


def test_a_gate_names_every_number_of_a_reaction():
    small = small_audit()
    model = measured(small, "left")
    relied = relied_on(small, model)
    result = assemble(small.context, replace(findings(small, None, model), relied=relied))
    row = next(m for m in result.models if m.name == "left")
    table = metrics_of(row)
    start = "reliance.interventions.negative.reactions.0.5."
    assert table[f"{start}changed"].value == 1
    assert table[f"{start}rise"].value is not None
    assert table["reliance.interventions.same.reactions.2.variants.there"].value == 0
    for name in ("changed", "shift", "class_changed"):
        assert range_of(start + name) == (0, 1)
    assert range_of(f"{start}rise") == (-1, 1)


def test_a_model_that_fails_is_noted_and_the_others_are_measured():
    small = small_audit()
    good = measured(small, "whole")
    network = Fails()
    bad = Measured(by_brightness("left", network), good.clean, good.logits)
    network.failing = True
    relied = relied_on(small, bad, good)
    assert "out of order" in relied.notes["left"].why
    assert list(relied.found) == ["whole"]
    assert relied.lost == ()


def test_nothing_is_measured_where_the_configuration_asks_for_nothing():
    small = small_audit()
    config = small.context.config.model_validate(small.context.config.model_dump() | {"reliance": False})
    assert config.reliance is None
    relied = measure_reliance(replace(small.context, config=config), small.images, [measured(small, "left")], {})
    assert relied == Relied()
