"""A small audit as values and as TOML, for tests of its configuration."""

from typing import Any

from audit.config import AuditConfig, parse_config

MINIMAL = {"data": {"path": "phantom"}, "classifiers": [{"name": "a", "checkpoint": "shipped:plain"}]}

TOML = """
seed = 7
[data]
path = "set/manifest.csv"
[generator]
path = "weights/generator.safetensors"
[inversion]
encoder = "../encoder.safetensors"
[[classifiers]]
name = "mine"
architecture = "resnet18"
checkpoint = "mine.pt"
[[classifiers]]
name = "exported"
file = "/models/exported.pt2"
[[classifiers]]
name = "shipped"
checkpoint = "shipped:plain"
"""


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = _merge(merged[key], value) if isinstance(value, dict) and key in merged else value
    return merged


def parsed(**changes: Any) -> AuditConfig:
    return parse_config(AuditConfig, _merge(MINIMAL, changes), "'audit.toml'")
