"""Attacked images to look at: the first ones that are fooled, by which radius, and their pictures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support_models import Brightness, grey_levels

from audit.config import DistanceConfig, EnsembleConfig, RobustnessConfig
from audit.pipeline.pictures import example_rows, save_examples
from audit.results import Components, ModelResult
from audit.robustness.accuracy import clean_metrics
from audit.robustness.balls import attacked_rows
from audit.robustness.evaluate import measured_robustness, robust_accuracy
from audit.robustness.examples import EXAMPLES
from audit.robustness.tally import Attacked

LEVELS = [0.45, 0.40, 0.49, 0.55, 0.60, 0.95, 0.48, 0.52, 0.9]
LABELS = [0, 0, 0, 1, 1, 1, 0, 1, 0]  # the last one is misclassified as it is


def attacked(**settings: object) -> Attacked:
    config = RobustnessConfig.model_validate({"n": 9, "eps": ("0.03", "0.15"), "steps": 8, "batch_size": 2} | settings)
    return robust_accuracy(Brightness(), grey_levels(LEVELS, LABELS), config, seed=0)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"attacks": ("ensemble",), "ensemble": EnsembleConfig(stages=("apgd-ce",), apgd_steps=8).model_dump()},
        {"eps": (), "l2_eps": ("0.12", "0.6")},
    ],
)
def test_examples_are_the_first_fooled_images_of_the_order(settings: dict[str, object]) -> None:
    found = attacked(**settings)
    order = attacked_rows(grey_levels(LEVELS, LABELS), 9, 0)
    small, large = found.standing
    rows = [i for i, row_id in enumerate(order.row_ids) if row_id not in ("5", "8")][:EXAMPLES]
    assert [one.row for one in found.examples] == rows
    for one in found.examples:
        level = LEVELS[int(one.id)]
        assert one.metric == (small if abs(level - 0.5) < 0.03 else large)
        assert (one.label, one.predicted) == (("dark", "bright") if level < 0.5 else ("bright", "dark"))
        assert torch.allclose(one.image, torch.full((1, 4, 4), level))
        assert not torch.equal(one.adversarial, one.image)
        assert (one.adversarial - one.image).abs().max() <= (0.15 if "l2_eps" not in settings else 0.6) + 1e-6


def test_nothing_fooled_is_no_example() -> None:
    assert attacked(eps=("0.001",)).examples == []


def test_recall_under_attack_by_hand() -> None:
    robust = attacked().robust
    recall = robust.pgd["0.03"].recall
    assert (recall["dark"].value, recall["dark"].n) == (pytest.approx(2 / 5), 5)
    assert (recall["bright"].value, recall["bright"].n) == (pytest.approx(3 / 4), 4)
    total = sum((interval.value or 0) * interval.n for interval in recall.values())
    assert total / 9 == pytest.approx(robust.pgd["0.03"].robust_accuracy.value)


@pytest.mark.parametrize(
    "settings", [{}, {"attacks": ("ensemble",), "ensemble": {"stages": ("square",), "square_queries": 50}}]
)
def test_what_is_answered_under_attack_by_hand(settings: dict[str, object]) -> None:
    robust = attacked(**settings).robust
    small, large = (robust.ensemble or robust.pgd).values()
    # Fooled within 0.03: 0.49, 0.48 (dark) and 0.52 (bright); 0.9 is labelled dark and is called bright as it is.
    assert small.confusion == [[2, 3], [1, 3]]
    assert small.precision == {"dark": pytest.approx(2 / 3), "bright": 0.5}
    assert small.f1 == {"dark": pytest.approx(0.5), "bright": pytest.approx(0.6)}
    assert large.confusion == [[0, 5], [3, 1]]
    assert small.robust_accuracy.value == pytest.approx(5 / 9)


def test_the_most_fragile_images_come_after_the_first_ones() -> None:
    config = RobustnessConfig(
        n=9, eps=("0.03",), steps=8, batch_size=2, trust=None, distance=DistanceConfig(largest_linf="0.08")
    )
    found = measured_robustness(Brightness(), grey_levels(LEVELS, LABELS), config, seed=0).examples
    fragile = [one for one in found if one.distance is not None]
    assert found[-len(fragile) :] == fragile
    assert fragile[0].id == "2"
    assert {one.id for one in fragile[1:3]} == {"6", "7"}
    assert fragile[3].id in ("0", "3")
    for one in fragile:
        assert one.distance == pytest.approx(abs(LEVELS[int(one.id)] - 0.5), abs=2e-3)
        assert one.metric == "robust.distances.Linf"
        assert float((one.adversarial - one.image).abs().max()) == pytest.approx(one.distance, abs=1e-6)
    assert [row.distance for row in example_rows(found, "x")] == [one.distance for one in found]


def test_pictures_are_written_beside_the_results(tmp_path: Path) -> None:
    found = attacked()
    clean = clean_metrics(Brightness(), grey_levels(LEVELS, LABELS))
    model = ModelResult(
        name="a model", rank=None, index=None, index_interval=None, components=Components(), weights_sha256="0",
        source="x", clean=clean, robust=found.robust,
    )  # fmt: skip
    model.robust.examples = example_rows(found.examples, "images/a-model")
    save_examples(model.robust, found.examples, tmp_path)
    assert len(model.robust.examples) == EXAMPLES
    for example, one in zip(model.robust.examples, found.examples, strict=True):
        image, adversarial, added = (
            np.asarray(Image.open(tmp_path / name), dtype=float)
            for name in (example.image, example.adversarial_image, example.perturbation_image)
        )
        assert np.abs(image / 255 - one.image[0].numpy()).max() <= 0.5 / 255
        assert np.abs(adversarial / 255 - one.adversarial[0].numpy()).max() <= 0.5 / 255
        change = (added / 255 - 0.5) / example.scale
        assert np.abs(change - (one.adversarial - one.image)[0].numpy()).max() <= 0.6 / 255 / example.scale
        assert {added.min(), added.max()} & {0.0, 255.0}
