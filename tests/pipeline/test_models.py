from pathlib import Path

import pytest
import torch
from support_small_audit import configured, small_audit

from audit.data.phantom import phantom_set
from audit.errors import ClassifierError
from audit.pipeline.context import Context
from audit.pipeline.models import Models, load_models
from audit.runtime.environment import Stopwatch

FACTORY = """
import sys

def fine():
    from torch import nn
    return nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(16, 3))

def raises():
    raise RuntimeError("no licence")

def leaves():
    sys.exit(3)
"""


def load(tmp_path: Path, classifiers: list[dict[str, str]], **changes: object) -> Models:
    (tmp_path / "networks.py").write_text(FACTORY)
    config = configured(classifiers=classifiers, **changes)
    phantom = phantom_set(calibration=30, audit=6, seed=1)
    small = small_audit().with_images(all=phantom, audited=phantom.split("test")).images
    return load_models(Context(config, tmp_path, torch.device("cpu"), None, Stopwatch()), small)


def by_factory(tmp_path: Path, name: str, checkpoint: str | None = None) -> dict[str, str]:
    one = {"name": name, "factory": f"{tmp_path}/networks.py:{name}"}
    return one if checkpoint is None else {**one, "checkpoint": checkpoint}


def shipped(name: str) -> dict[str, str]:
    return {"name": name, "checkpoint": f"shipped:{name}"}


def test_one_that_cannot_be_loaded_leaves_the_others(tmp_path):
    torch.save({"weight": torch.ones(3, 16)}, tmp_path / "w.pt")
    bad = [by_factory(tmp_path, name, str(tmp_path / "w.pt")) for name in ("raises", "leaves")]
    found = load(tmp_path, [bad[0], shipped("plain"), bad[1]])
    assert [c.name for c in found.classifiers] == ["plain"]
    assert {name: one.stage for name, one in found.failed.items()} == {"raises": "loading", "leaves": "loading"}
    assert "no licence" in found.failed["raises"].why


def test_where_none_can_be_loaded_the_first_reason_is_told(tmp_path):
    torch.save({"weight": torch.ones(3, 16)}, tmp_path / "w.pt")
    bad = [by_factory(tmp_path, name, str(tmp_path / "w.pt")) for name in ("raises", "leaves")]
    with pytest.raises(ClassifierError, match=r"no licence.*The other classifier could not be audited either"):
        load(tmp_path, bad)


def test_a_file_that_is_not_there_is_a_mistake_of_the_configuration(tmp_path):
    with pytest.raises(ClassifierError, match=r"Checkpoint .*gone\.safetensors"):
        load(tmp_path, [shipped("plain"), {"name": "gone", "checkpoint": "gone.safetensors", "architecture": "x"}])


def test_judges_are_loaded_beside_the_audited_models(tmp_path):
    copy = {"name": "again", "checkpoint": "shipped:plain-again", "copy_of": "plain"}
    found = load(tmp_path, [shipped("plain")], judge_checkpoints=[copy])
    assert [c.name for c in found.judges] == ["again"]
    assert found.judges[0].weights_sha256 != found.classifiers[0].weights_sha256
