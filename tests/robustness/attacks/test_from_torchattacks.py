"""The classes of torchattacks by name, against our own PGD and without leaving a trace."""

import random

import numpy as np
import pytest
import torch
from support_models import Brightness, grey_levels
from torch import nn

from audit.classifiers.load import load_classifier
from audit.config import ClassifierConfig, RobustnessConfig
from audit.data.audit_set import AuditSet
from audit.data.phantom import CLASS_NAMES, phantom_set
from audit.errors import ConfigError
from audit.robustness.attacks import from_torchattacks
from audit.robustness.attacks.registry import check_attacks, choose
from audit.robustness.evaluate import measured_robustness

LEVELS, LABELS = [0.45, 0.40, 0.30, 0.55, 0.60, 0.70], [0, 0, 0, 1, 1, 1]


def test_a_package_that_is_missing_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(from_torchattacks.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"torchattacks is not installed: pip install 'spruce-audit\[torchattacks\]'"):
        check_attacks(RobustnessConfig(attacks=("torchattacks:CW",)))


@pytest.fixture
def torchattacks() -> None:
    pytest.importorskip("torchattacks", reason="torchattacks is an extra: pip install 'spruce-audit[torchattacks]'")


@pytest.mark.usefixtures("torchattacks")
def test_pgd_leaves_as_many_standing_as_ours() -> None:
    classifier = load_classifier(ClassifierConfig(name="plain", checkpoint="shipped:plain"), (1, 64, 64), CLASS_NAMES)
    options = {"torchattacks:PGD": {"steps": 20, "alpha": 2.5 * 1 / 255 / 20}}
    config = RobustnessConfig(
        n=48, eps=("1/255",), steps=20, attacks=("pgd", "torchattacks:PGD"), options=options, trust=None, batch_size=24
    )
    check_attacks(config)
    robust = measured_robustness(classifier, phantom_set(6, 60, 0).split("test"), config, 0).robust
    ours, theirs = robust.pgd["1/255"], robust.attacks["torchattacks:PGD"]["1/255"]
    assert 0.1 < ours.robust_accuracy.value < 0.9
    # Ours keeps the best iterate, theirs the last, from other starts: one image in twenty may fall otherwise.
    assert theirs.robust_accuracy.value == pytest.approx(ours.robust_accuracy.value, abs=0.05)
    assert theirs.robust_accuracy.value >= ours.robust_accuracy.value - 1 / 48
    assert (theirs.steps, theirs.without_gradient) == (20, 0)
    assert theirs.source == from_torchattacks.source()


@pytest.mark.usefixtures("torchattacks")
def test_cw_is_measured_by_distance_and_leaves_no_trace() -> None:
    name, data = "torchattacks:CW", grey_levels(LEVELS, LABELS)
    config = RobustnessConfig(
        n=6, eps=("0.08",), l2_eps=("0.33", "0.61"), attacks=(name,), options={name: {"c": 10, "steps": 60}}, trust=None
    )
    model = Brightness().train()
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    robust, again = (measured_robustness(model, data, config, 0).robust for _ in range(2))
    assert robust == again
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]  # noqa: NPY002
    assert model.training
    assert model.sharpness.requires_grad
    assert model.sharpness.grad is None
    assert set(robust.attacks) == {f"{name}_l2"}
    (row,) = robust.distances
    assert row.path == f"robust.distances.{name}/L2"
    # 4 x 4 pixels of level 0.45 are 4 * 0.05 from the middle.
    for row_id, level in enumerate(LEVELS):
        assert row.distances_by_image[str(row_id)] == pytest.approx(4 * abs(level - 0.5), abs=0.05)
    accuracies = [one.robust_accuracy.value for one in robust.attacks[f"{name}_l2"].values()]
    assert accuracies == pytest.approx([4 / 6, 2 / 6], abs=0.2)
    assert accuracies[0] > accuracies[1]


@pytest.mark.usefixtures("torchattacks")
@pytest.mark.parametrize(
    ("name", "norms", "minimal", "gradients"),
    [
        ("APGD", ("Linf", "L2"), False, True),
        ("PGDL2", ("L2",), False, True),
        ("PIFGSM", ("Linf",), False, True),
        ("DeepFool", ("L2",), True, True),
        ("JSMA", ("L2",), True, True),
        ("Square", ("Linf", "L2"), False, False),
    ],
)
def test_what_a_class_is_like_is_read_from_itself(
    name: str, norms: tuple[str, ...], minimal: bool, gradients: bool
) -> None:
    spec = from_torchattacks.spec_of(f"torchattacks:{name}", "robustness.attacks")
    assert (spec.norms, spec.minimal, spec.gradients) == (norms, minimal, gradients)
    assert not spec.accepts("eps")


@pytest.mark.usefixtures("torchattacks")
def test_classes_and_options_that_are_none_are_refused() -> None:
    for name in ("torchattacks:PDG", "torchattacks:LGV"):
        with pytest.raises(ConfigError, match=f"'{name}', and the classes of torchattacks are: VANILA, GN, FGSM"):
            choose(name, RobustnessConfig())
    config = RobustnessConfig(attacks=("torchattacks:CW",), options={"torchattacks:CW": {"eps": 0.1}})
    with pytest.raises(ConfigError, match="no option 'eps'"):
        check_attacks(config)


@pytest.mark.usefixtures("torchattacks")
@pytest.mark.parametrize("name", ["FGSM", "APGDT", "FAB", "DeepFool", "PGDRSL2"])
def test_other_classes_fool_a_network_of_five_classes(name: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(144, 5))
    images = torch.rand(8, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    data = AuditSet(
        read_image=lambda row: images[row, 0].numpy(),
        labels=network(images).argmax(dim=1).numpy(),
        class_names=tuple("abcde"),
        ids=tuple("01234567"),
        splits=np.array(["test"] * 8),
        image_shape=(1, 12, 12),
    )
    options = {"APGDT": {"steps": 5}, "FAB": {"steps": 5}}
    full = f"torchattacks:{name}"
    config = RobustnessConfig(
        n=8, eps=("0.2",), l2_eps=("2",), attacks=(full,), options={full: options.get(name, {})}, trust=None
    )
    found = measured_robustness(network, data, config, 0)
    assert [one.why for one in found.missing] == []
    assert min(one.robust_accuracy.value for table in found.robust.tables() for one in table.radii.values()) < 0.6


@pytest.mark.usefixtures("torchattacks")
def test_a_class_that_needs_more_classes_is_left_out() -> None:
    config = RobustnessConfig(n=6, eps=("0.1",), attacks=("torchattacks:APGDT",), trust=None)
    (missing,) = measured_robustness(Brightness(), grey_levels(LEVELS, LABELS), config, 0).missing
    assert "'torchattacks:APGDT' needs at least 4 classes" in missing.why
