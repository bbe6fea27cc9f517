"""Interventions: nothing happens at strength 0, each image is changed by itself, and names are checked early."""

from pathlib import Path

import pytest
import support_outside
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from audit.config import RelianceConfig, parse_config
from audit.errors import ConfigError
from audit.reliance.interventions import INTERVENTIONS, ON_REQUEST, choose_interventions
from audit.reliance.spec import intervene

ALL = list(INTERVENTIONS.builtin)
CONTINUOUS = ("exposure", "contrast", "gamma", "shift", "rotation", "scale", "resolution")
"""Interventions that become the identity as the strength does; tokens are a pixel large, and JPEG keeps its blocks."""


def images(n: int = 3, channels: int = 1, height: int = 32, width: int = 40) -> Tensor:
    """Smooth random images."""
    coarse = torch.rand(n, channels, 5, 6, generator=torch.Generator().manual_seed(1))
    return interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_shape_range_and_strength(name: str, channels: int):
    given, intervention = images(2, channels, 96, 100), INTERVENTIONS.get(name, "")
    assert list(intervention.strengths) == sorted(intervention.strengths)
    assert intervention.strengths[0] > 0
    for change in intervention.variants.values():
        assert torch.equal(intervene(given, change, 0), given)
        near, far = (intervene(given, change, s) for s in (intervention.strengths[0], intervention.strengths[-1]))
        for changed in (near, far):
            assert changed.shape == given.shape
            assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
        assert float((far - given).abs().mean()) > float((near - given).abs().mean()) > 0


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_change_vanishes_with_its_strength(name: str):
    given = images()
    for change in INTERVENTIONS.get(name, "").variants.values():
        torch.testing.assert_close(intervene(given, change, 1e-7), given, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_an_image_is_changed_in_the_same_way_whatever_stands_beside_it(name: str):
    given, intervention = images(4), INTERVENTIONS.get(name, "")
    given[2] = given[2] * 0.1  # a dark one among bright ones
    for change in intervention.variants.values():
        whole = intervene(given, change, intervention.strengths[-1])
        alone = torch.cat([intervene(one[None], change, intervention.strengths[-1]) for one in given])
        torch.testing.assert_close(whole, alone, rtol=0, atol=1e-6)
        assert torch.equal(whole, intervene(given, change, intervention.strengths[-1]))


def dot(row: int, column: int) -> Tensor:
    """A bright blob in an image of 40 x 60 pixels."""
    rows, columns = torch.arange(40.0)[:, None] - row, torch.arange(60.0) - column
    return torch.exp(-(rows**2 + columns**2) / 8)[None, None]


@pytest.mark.parametrize(
    ("name", "variant", "strength", "ends"),
    [
        ("shift", "right", 0.1, (10, 44)),
        ("shift", "down", 0.1, (14, 40)),
        ("shift", "left", 0.1, (10, 36)),
        ("shift", "up", 0.1, (6, 40)),
        ("rotation", "clockwise", 90, (30, 39)),
        ("rotation", "counterclockwise", 90, (9, 20)),
        ("scale", "larger", 0.5, (5, 45)),
    ],
)
def test_what_is_moved_arrives_where_the_name_says(name: str, variant: str, strength: float, ends: tuple[int, int]):
    moved = intervene(dot(10, 40), INTERVENTIONS.get(name, "").variants[variant], strength)[0, 0]
    row, column = divmod(int(moved.argmax()), 60)
    assert abs(row - ends[0]) <= 1
    assert abs(column - ends[1]) <= 1


def test_all_but_what_lies_on_the_body_are_made_unless_the_configuration_says_which():
    assert set(choose_interventions(RelianceConfig())) == set(ALL) - set(ON_REQUEST)
    assert list(choose_interventions(RelianceConfig(interventions=("pacemaker", "blur")))) == ["pacemaker", "blur"]


def test_an_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(ConfigError, match=r"'reliance.interventions' names 'markers', .*side-marker"):
        choose_interventions(RelianceConfig(interventions=("markers",)))


def test_a_token_of_the_users_may_not_be_called_as_an_intervention_is(tmp_path: Path):
    config = parse_config(RelianceConfig, {"tokens": [{"name": "blur", "path": str(tmp_path)}]}, "test")
    with pytest.raises(ConfigError, match="rename it"):
        choose_interventions(config)


@pytest.mark.parametrize(
    ("key", "values"), [("interventions", ["blur", "blur"]), ("tokens", 2 * [{"name": "a", "path": "a"}])]
)
def test_a_name_that_is_given_twice_is_refused(key: str, values: list[object]):
    with pytest.raises(ConfigError, match="twice"):
        parse_config(RelianceConfig, {key: values}, "test")


def test_another_package_adds_an_intervention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    code = (
        "from audit.reliance.spec import Intervention\n"
        "def change(images, strength):\n"
        "    return images * (1 - strength) + (1 - images) * strength\n"
        "negative = Intervention('acquisition', {'': change}, (0.5, 1), '')\n"
    )
    support_outside.install(tmp_path, monkeypatch, "spruce_audit.interventions: negative = negative", code)
    (found,) = choose_interventions(RelianceConfig(interventions=("negative",))).values()
    given = images()
    torch.testing.assert_close(intervene(given, found.variants[""], 1), 1 - given)
    assert INTERVENTIONS.origin("negative") == "outside-part 1.0"
