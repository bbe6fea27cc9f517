"""Presets and efforts stand in for defaults."""

from pathlib import Path
from typing import Any

import pytest
from support_config import TOML, parsed

from audit.config import RelianceConfig, load_config
from audit.errors import ConfigError


def test_an_effort_stands_in_for_defaults_and_a_given_key_wins(tmp_path: Path) -> None:
    given = {"n": 7, "trust": {"square_queries": 9}, "distance": True}
    quick = parsed(effort="quick", robustness=given, preset="spruce-thesis").robustness
    assert quick.trust is not None
    assert (quick.n, quick.steps, quick.trust.n, quick.trust.square_queries) == (7, 10, 32, 9)
    assert quick.corruptions is None
    assert parsed(effort="quick", preset="spruce-thesis").counterfactual.choose == "last"
    assert parsed(effort="quick", reliance=False).reliance is None
    assert parsed(effort="quick", robustness={"trust": False}).robustness.trust is None
    standard, default = parsed(effort="standard"), parsed()
    assert standard == default
    assert quick.steps < default.robustness.steps < parsed(effort="thorough").robustness.steps
    (tmp_path / "a.toml").write_text('effort = "quick"\n' + TOML)
    assert load_config(tmp_path / "a.toml").effort == "quick"
    assert load_config(tmp_path / "a.toml", "thorough").reliance == RelianceConfig(n=500)
    with pytest.raises(ConfigError, match=r"Key 'robustness' .* is not valid"):
        parsed(effort="quick", robustness=3)


def test_a_preset_stands_in_for_defaults_and_a_given_key_wins() -> None:
    config = parsed(preset="spruce-thesis", counterfactual={"steps": 30})
    search = config.counterfactual
    assert (search.loss, search.balance, search.shrink, search.choose) == ("raw", "fixed", False, "last")
    assert (search.perceptual_weight, search.latent_weight, search.image_weight) == (0.1, 1e-4, 1e-6)
    assert (search.operating_point_cap, search.steps) == (1.0, 30)
    assert (config.inversion.perceptual_weight, config.metrics.perceptual) == (1.0, "lpips-vgg")
    own = {"counterfactual": {"choose": "sparsest"}, "metrics": {"perceptual": "auto"}}
    changed = parsed(preset="spruce-thesis", **own)
    assert (changed.counterfactual.choose, changed.metrics.perceptual) == ("sparsest", "auto")
    assert (changed.counterfactual.loss, changed.inversion.perceptual_weight) == ("raw", 1.0)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"preset": "thesis"}, "Key 'preset' in 'audit.toml' is not valid: Input should be 'spruce-thesis'"),
        ({"preset": "spruce-thesis", "counterfactual": {"shrink": True}}, "set shrink = false or choose = 'reached'"),
        ({"preset": "spruce-thesis", "inversion": 3}, "Key 'inversion' in 'audit.toml' is not valid"),
        ({"counterfactual": {"choose": "last"}}, "set shrink = false or choose = 'reached'"),
    ],
)
def test_what_does_not_go_with_a_preset_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parsed(**changes)
