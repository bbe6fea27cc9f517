"""A whole audit: its defaults, and the names of classifiers and judges."""

from pathlib import Path

import pytest
from support_config import MINIMAL, parsed

from audit.config import AuditConfig, DataConfig, parse_config, resolve_paths
from audit.errors import ConfigError


def test_a_minimal_audit_has_defaults() -> None:
    config = parsed()
    assert config.generator is None
    assert config.data.audit_split == "test"
    assert config.robustness.eps == ("2/255", "8/255")
    assert parse_config(AuditConfig, config.model_dump(), "again") == config
    assert parse_config(AuditConfig, config.model_dump(mode="json"), "again") == config


def test_classifier_names_differ() -> None:
    with pytest.raises(ConfigError, match="must differ; used twice: a"):
        parsed(classifiers=MINIMAL["classifiers"] * 2)


def test_judges_have_names_of_their_own_and_are_copies_of_audited_classifiers(tmp_path: Path) -> None:
    judge = {"name": "b", "architecture": "resnet18", "checkpoint": "b.pt", "copy_of": "a"}
    config = parsed(judge_checkpoints=[judge])
    assert config.judge_checkpoints[0].copy_of == "a"
    assert resolve_paths(config, tmp_path).judge_checkpoints[0].checkpoint == str(tmp_path / "b.pt")
    with pytest.raises(ConfigError, match="must differ; used twice: a"):
        parsed(judge_checkpoints=[judge | {"name": "a"}])
    with pytest.raises(ConfigError, match="copy_of 'c', which is no audited classifier: name one of a"):
        parsed(judge_checkpoints=[judge | {"copy_of": "c"}])


def test_sections_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        DataConfig(path="phantom").path = "other"  # type: ignore[misc]
