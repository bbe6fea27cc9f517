"""Attacks by name: those of the table one by one, and one of another package, which nothing here knows."""

import re
from pathlib import Path

import pytest
import torch
from support_models import Brightness, grey_levels
from support_outside import install

from audit.config import DistanceConfig, EnsembleConfig, RobustnessConfig, TrustConfig
from audit.errors import ConfigError
from audit.results import ATTACK_TITLES, ENSEMBLE, TRANSFER
from audit.robustness.attacks.registry import ATTACKS, check_attacks
from audit.robustness.evaluate import measured_robustness, robust_accuracy
from audit.robustness.tally import Attacked
from audit.robustness.trust.case import Marks

LEVELS, LABELS = [0.45, 0.40, 0.30, 0.55, 0.60, 0.70], [0, 0, 0, 1, 1, 1]
SHIFT = '''
import torch

from audit.robustness.attacks.spec import AttackSpec


def shift(classifier, images, labels, *, eps, norm, generator, share=1.0):
    """Move all pixels towards the other class by a share of the radius."""
    towards = torch.where(labels == 0, eps, -eps).view(-1, 1, 1, 1)
    return (images + share * towards).clamp(0, 1)


attack = AttackSpec(shift, norms=("Linf",), gradients=False)
'''


def measured(**changed: object) -> Attacked:
    config = RobustnessConfig(
        **{"n": 6, "eps": ("0.08", "0.15"), "steps": 10, "batch_size": 4, "trust": None, **changed}
    )
    check_attacks(config)
    return measured_robustness(Brightness(), grey_levels(LEVELS, LABELS), config, 0)


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "spruce_audit.attacks: shift = attack", SHIFT)


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "square"])
def test_every_attack_of_the_table_can_be_made_alone(name: str) -> None:
    found = measured(
        attacks=(name,), l2_eps=("0.32", "0.6"), ensemble=EnsembleConfig(apgd_steps=10, square_queries=100)
    )
    by_radius = found.robust.attacks[name]
    assert [by_radius[eps].robust_accuracy.value for eps in ("0.08", "0.15")] == pytest.approx([4 / 6, 2 / 6])
    # A grey level moved by 0.08 is 0.32 away in L2 on 4 x 4 pixels; a search of 100 queries does not come near it.
    farther = [found.robust.attacks[f"{name}_l2"][eps].robust_accuracy.value for eps in ("0.32", "0.6")]
    if name != "square":
        assert farther == pytest.approx([4 / 6, 2 / 6])
    assert by_radius["0.08"].source is None
    assert (by_radius["0.08"].without_gradient is None) == (name == "square")
    assert {table.title for table in found.robust.tables()} == {ATTACK_TITLES[name], f"{ATTACK_TITLES[name]}, L2"}


def test_every_attack_has_a_title() -> None:
    assert {*ATTACKS.builtin, ENSEMBLE, TRANSFER} == set(ATTACK_TITLES)


@pytest.mark.usefixtures("outside")
def test_an_attack_of_another_package_is_measured_like_ours() -> None:
    found = measured(attacks=("pgd", "shift"), l2_eps=("0.5",), trust=TrustConfig(n=8))
    shifted = found.robust.attacks["shift"]
    assert set(found.robust.attacks) == {"shift"}
    assert [one.robust_accuracy.value for one in shifted.values()] == pytest.approx([4 / 6, 2 / 6])
    near = shifted["0.08"]
    assert (near.source, near.steps, near.without_gradient) == ("outside-part 1.0", None, None)
    ids = grey_levels(LEVELS, LABELS).row_ids
    assert {i: near.outcomes[i] for i in ids} == {
        "0": "shift",
        "3": "shift",
        "1": None,
        "2": None,
        "4": None,
        "5": None,
    }
    assert shifted["0.15"].outcomes["0"] == "smaller"
    assert torch.equal(found.standing["robust.attacks.shift.0.08"], found.standing["robust.pgd.0.08"])
    by_name = {check.name: check.attacks for check in found.robust.checks}
    assert "shift" in by_name["randomised-forward"]
    assert "shift" not in by_name["black-box-beats-white-box"]


@pytest.mark.usefixtures("outside")
def test_its_options_come_from_the_configuration() -> None:
    found = measured(attacks=("shift",), options={"shift": {"share": 0.5}})
    assert found.robust.attacks["shift"]["0.15"].robust_accuracy.value == pytest.approx(4 / 6)


@pytest.mark.usefixtures("outside")
def test_it_can_be_a_stage_of_the_ensemble() -> None:
    found = measured(attacks=("ensemble",), ensemble=EnsembleConfig(stages=("shift", "apgd-ce"), apgd_steps=5))
    (at, farther) = found.robust.ensemble.values()
    assert [(one.attack, one.standing) for one in at.stages] == [("before", 6), ("shift", 4), ("apgd-ce", 4)]
    assert farther.robust_accuracy.value == pytest.approx(2 / 6)
    assert at.outcomes["0"] == "shift"


def test_what_a_failed_check_speaks_about_follows_from_the_properties_of_the_attacks() -> None:
    def marks(stages: tuple[str, ...], *attacks: str) -> Marks:
        return Marks.of(RobustnessConfig(attacks=("pgd", *attacks), ensemble=EnsembleConfig(stages=stages)))

    whole = marks(("apgd-ce", "apgd-t", "fab-t", "square"), "apgd-ce", "square")
    assert whole.every == ("pgd", "ensemble", "distance", "apgd-ce", "square")
    assert whole.by_loss == ("pgd", "apgd-ce", "square")
    assert whole.by_gradient == ("pgd", "distance", "apgd-ce")
    weak = marks(("apgd-ce",))
    assert weak.by_loss == ("pgd", "ensemble")
    assert weak.by_gradient == ("pgd", "ensemble", "distance")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"attacks": ("pdg",)}, r"'robust.*attacks' names 'pdg', which is none of: pgd, apgd-ce"),
        ({"ensemble": EnsembleConfig(stages=("apgd",))}, r"'robustness.ensemble.stages' names 'apgd'"),
        ({"attacks": ("square",), "options": {"square": {"p_inti": 0.5}}}, r"no option 'p_inti'"),
        ({"attacks": ("square",), "options": {"square": {"eps": 0.5}}}, r"no option 'eps'"),
        ({"attacks": ("apgd-ce",), "options": {"apgd-ce": {"loss": "dlr"}}}, r"no option 'loss'"),
        ({"options": {"pgd": {"steps": 5}}}, r"'steps' .* has a key of its own"),
        ({"options": {"mine": {"steps": 5}}}, r"\[robustness.options.\"mine\"\] belongs to no attack"),
        ({"attacks": ("shift",), "eps": (), "l2_eps": ("1",)}, r"'shift' .* works in Linf only"),
        (
            {"attacks": ("ensemble",), "l2_eps": ("1",), "ensemble": EnsembleConfig(stages=("shift",))},
            r"'shift' .* does not work in L2",
        ),
    ],
)
@pytest.mark.usefixtures("outside")
def test_what_cannot_be_made_is_refused_before_anything_is_read(changed: dict, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_attacks(RobustnessConfig(**changed))
    assert re.search(said, str(caught.value))
    assert "\n" not in str(caught.value)


def test_an_attack_for_more_classes_is_left_out_and_said_to_be() -> None:
    found = measured(attacks=("pgd", "apgd-dlr"))
    assert not found.robust.attacks
    (missing,) = found.missing
    assert "needs at least 3 classes where the classifier has 2" in missing.why
    assert missing.paths == ["robust.attacks.apgd-dlr", "robust.attacks.apgd-dlr_l2"]
    assert set(found.standing) == {"robust.pgd.0.08", "robust.pgd.0.15"}


def test_distances_and_accuracies_of_an_attack_that_looks_for_the_nearest_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nearest = '''
import torch

from audit.robustness.attacks.spec import AttackSpec


def cross(classifier, images, labels, *, eps, norm, generator):
    """Go a hair beyond the middle grey, which is where `Brightness` decides otherwise."""
    return images - images.mean(dim=(1, 2, 3), keepdim=True) + torch.where(labels == 0, 0.501, 0.499).view(-1, 1, 1, 1)


attack = AttackSpec(cross, minimal=True, gradients=False)
'''
    install(tmp_path, monkeypatch, "spruce_audit.attacks: cross = attack", nearest)
    found = measured(attacks=("pgd", "cross"), distance=DistanceConfig(), l2_eps=("0.25",))
    assert [one.robust_accuracy.value for one in found.robust.attacks["cross"].values()] == pytest.approx(
        [4 / 6, 2 / 6]
    )
    assert found.robust.attacks["cross_l2"]["0.25"].robust_accuracy.value == pytest.approx(4 / 6)
    assert found.robust.attacks["cross"]["0.15"].outcomes["0"] == "smaller"
    rows = {row.path: row for row in found.robust.distances}
    assert set(rows) == {"robust.distances.cross/Linf", "robust.distances.cross/L2", "robust.distances.Linf"}
    theirs, ours = rows["robust.distances.cross/Linf"], rows["robust.distances.Linf"]
    assert theirs.standing == 0
    for row_id, value in ours.distances_by_image.items():
        assert theirs.distances_by_image[row_id] == pytest.approx(value, abs=0.01)


def test_pgd_is_not_needed_for_the_trust_checks() -> None:
    config = RobustnessConfig(n=6, eps=("0.08",), attacks=("square",), trust=TrustConfig(n=8, square_queries=20))
    robust = measured_robustness(Brightness(), grey_levels(LEVELS, LABELS), config, 0).robust
    assert {check.name for check in robust.checks} >= {"randomised-forward", "large-eps"}
    assert robust.trusted is not False


def test_the_examples_are_of_the_first_attack() -> None:
    config = RobustnessConfig(n=6, eps=("0.15",), attacks=("square", "pgd"), trust=None)
    found = robust_accuracy(Brightness(), grey_levels(LEVELS, LABELS), config, 0)
    assert {one.metric for one in found.examples} == {"robust.attacks.square.0.15"}
