"""Radii that are written as text: their text is kept, and their value is exact."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.config import RobustnessConfig, eps_value, parse_config
from audit.errors import ConfigError


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 255))
def test_eps_keeps_its_text_and_has_its_value(numerator: int) -> None:
    text = f"{numerator}/255"
    config = parse_config(RobustnessConfig, {"eps": [text, 0.03]}, "x")
    assert config.eps == (text, "0.03")
    assert eps_value(text) == numerator / 255


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [("0.5/255", "0.5/255", 0.5 / 255), (" 4 / 255", "4/255", 4 / 255), ("8/255.0", "8/255.0", 8 / 255)],
)
def test_radii_may_be_fractions_of_decimals_with_spaces(text: str, key: str, value: float) -> None:
    config = parse_config(RobustnessConfig, {"eps": [text], "l2_eps": [text]}, "x")
    assert config.eps == config.l2_eps == (key,)
    assert eps_value(key) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("text", ["1/2/3", "/255", "8/", "0.5/0.0"])
def test_what_is_no_fraction_is_refused(text: str) -> None:
    for table in ({"eps": [text]}, {"l2_eps": [text]}):
        with pytest.raises(ConfigError, match="is not a number such as"):
            parse_config(RobustnessConfig, table, "x")
