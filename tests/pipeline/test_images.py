from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support_small_audit import configured

from audit.errors import ConfigError
from audit.pipeline import images
from audit.pipeline.context import Context
from audit.pipeline.images import read_images
from audit.runtime.environment import Stopwatch


def context(**changes: object) -> Context:
    data = {"path": "phantom", "phantom": {"calibration": 30, "audit": 9}}
    config = configured(**({"data": data, "queries": {"target": "healthy"}} | changes))
    return Context(config, Path.cwd(), torch.device("cpu"), None, Stopwatch())


def test_calibration_images_are_read_only_where_a_stage_needs_them():
    assert read_images(context()).calibration is None
    assert len(read_images(context(robustness={"vulnerability": {}})).calibration) == 30


def test_a_class_is_learnt_from_a_bounded_number_of_images_drawn_by_the_seed(monkeypatch):
    monkeypatch.setattr(images, "CALIBRATION_PER_CLASS", 4)
    one = context(robustness={"vulnerability": {}})
    first, again = read_images(one).calibration, read_images(one).calibration
    assert torch.bincount(first.row_labels).tolist() == [4, 4, 4]
    assert first.row_ids == again.row_ids
    other = replace(one, config=one.config.model_copy(update={"seed": one.config.seed + 1}))
    assert torch.bincount(read_images(other).calibration.row_labels).tolist() == [4, 4, 4]


@pytest.mark.parametrize(
    ("name", "said"),
    [("marke", "phantom .*has no masks of: name one of lesion, marker"), ("region", "carries the class")],
)
def test_a_confounder_that_is_no_other_region_of_the_data_fails_before_the_long_stages(name: str, said: str):
    with pytest.raises(ConfigError, match=rf"regions\.confounder names the region '{name}', which {said}"):
        read_images(context(regions={"confounder": ["marker", name]}))
    assert read_images(context(regions={"confounder": ["marker"]})).calibration is None


def test_a_target_that_is_no_class_fails_before_the_long_stages():
    with pytest.raises(ConfigError, match=r"queries\.target.*'well'"):
        read_images(context(generator={"path": "shipped:phantom"}, queries={"target": "well"}))


def test_what_was_read_is_described():
    read = read_images(context())
    assert (len(read.all), len(read.audited)) == (39, 9)
    assert read.read.audit_split == "test"
    assert len(read.audited_sha256) == 64
