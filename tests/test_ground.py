"""What an audit says of canonical networks whose weights are not on the machine."""

from pathlib import Path
from typing import Literal

import pytest
import torch

from audit.config import AuditConfig, load_config
from audit.data.audit_set import AuditSet
from audit.data.demo import demo_config
from audit.data.phantom import phantom_set
from audit.errors import MetricError
from audit.ground import load_ground

NAMES = ("inception-v3-fid", "lpips-v0.1-vgg", "clip-vit-large-patch14-336")


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AuditConfig:
    """The demo's configuration on a machine without canonical weights."""
    monkeypatch.setenv("SPRUCE_AUDIT_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("audit.weights.importlib.util.find_spec", lambda name: None)
    return load_config(demo_config())


def choose(config: AuditConfig, canonical: Literal["auto", "off", "require"]) -> AuditConfig:
    return config.model_copy(update={"metrics": config.metrics.model_copy(update={"canonical": canonical})})


@pytest.fixture
def data(config: AuditConfig) -> AuditSet:
    return phantom_set(2, 2, config.seed)


def test_absent_networks_are_not_computed_and_the_remedy_is_named(config: AuditConfig, data: AuditSet) -> None:
    ground = load_ground(choose(config, "auto"), data, torch.device("cpu"))
    assert (ground.canonical, ground.lpips) == ([], None)
    whys = " ".join(one.why for one in ground.missing)
    assert all(f"spruce-audit weights pull {name}" in whys for name in NAMES)


def test_required_networks_fail_with_the_command_that_fetches_them(config: AuditConfig, data: AuditSet) -> None:
    with pytest.raises(MetricError, match=f"'require' but .* run `spruce-audit weights pull {' '.join(NAMES)}`"):
        load_ground(choose(config, "require"), data, torch.device("cpu"))


def test_off_says_nothing(config: AuditConfig, data: AuditSet) -> None:
    assert load_ground(choose(config, "off"), data, torch.device("cpu")).missing == []
