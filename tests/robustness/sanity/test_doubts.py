"""What a reader is told of a model's input and of its answers, and what they are not bothered with."""

from typing import Any

import pytest
import torch

from audit.metrics.intervals import wilson_interval
from audit.results import ModelInput, Notice, Origin, Reading
from audit.robustness.sanity.doubts import answer_notices, as_keys, best_reading, input_notices

NAMES = ("normal", "Pneumonia")


SETTINGS = ("size", "channels", "mean", "std", "classes", "weights")


def given(origins: dict[str, Origin] | None = None, **changes: Any) -> ModelInput:
    settings = {"size": (28, 28), "channels": 1, "mean": [0.0], "std": [1.0], "classes": list(NAMES), "weights": "a.pt"}
    said: dict[str, Origin] = dict.fromkeys(SETTINGS, "checkpoint")
    return ModelInput(**{**settings, **changes}, origins={**said, **(origins or {})})


def reading(name: str, right: int, better: bool = False, n: int = 200, **settings: Any) -> Reading:
    return Reading(
        name=name, assumed=name == "as audited", accuracy=wilson_interval(right, n), better=better, settings=settings
    )


ASSUMED = reading("as audited", 110)


def kinds(found: list[Notice]) -> list[str]:
    assert all(notice.subject == "it" for notice in found)
    return [notice.kind for notice in found]


def notices(
    about: ModelInput, readings: list[Reading] | None = None, shape: tuple[int, int, int] = (1, 28, 28),
    names: tuple[str, ...] = ("a", "b"),
) -> list[Notice]:  # fmt: skip
    return input_notices("it", about, [ASSUMED] if readings is None else readings, shape, names)


def test_a_model_whose_input_is_known_and_fits_is_left_in_peace() -> None:
    assert notices(given(), [ASSUMED, reading("no normalisation", 90)]) == []


def test_a_better_reading_is_told_with_both_numbers_and_its_keys() -> None:
    rows = [ASSUMED, reading("28 x 28 pixels, no normalisation", 165, True, input_size=28, mean=[0.0], std=[1.0])]
    (notice,) = notices(given(), rows)
    assert notice.kind == "other-reading-better"
    for part in ("82.5 %", "55.0 %", "200 images", "`input_size = 28`", "`mean = [0.0]`", "`std = [1.0]`", "1 other"):
        assert part in notice.text


def test_the_best_reading_is_told_and_of_equals_the_one_that_changes_least() -> None:
    rows = [
        ASSUMED,
        reading("x", 140, True, mean=[0.0], std=[1.0]),
        reading("y", 165, True, mean=[0.5], std=[0.5], input_size=28),
        reading("z", 164, True, input_size=28),
        reading("few", 60, True, n=64, input_size=32),
    ]
    assert best_reading(rows) == rows[3]
    assert best_reading([ASSUMED, reading("worse", 10)]) is None


def test_keys_are_toml() -> None:
    one = reading("x", 1, classes=["Pneumonia", "näher"], input_size=28)
    assert as_keys(one) == 'set `classes = ["Pneumonia", "näher"]`, `input_size = 28` in its [[classifiers]] table'
    one.settings = {}
    one.beyond_settings = ["turn it round"]
    assert as_keys(one) == "turn it round"


@pytest.mark.parametrize("silent", [("mean", "std"), ("std",)])
def test_nobody_gave_mean_and_std(silent: tuple[str, ...]) -> None:
    about = given(origins=dict.fromkeys(silent, "default"))
    (notice,) = notices(about, [ASSUMED, reading("x", 90)])
    assert notice.kind == "no-normalisation-given"
    assert "none is better" in notice.text
    assert len(notice.text) < 240


def test_a_better_normalisation_takes_the_place_of_that_notice() -> None:
    about = given(origins={"mean": "default", "std": "default"})
    assert kinds(notices(about, [ASSUMED, reading("x", 165, True, mean=[0.5], std=[0.5])])) == ["other-reading-better"]
    other = [ASSUMED, reading("x", 165, True, input_size=32)]
    assert kinds(notices(about, other)) == ["other-reading-better", "no-normalisation-given"]
    assert "none is better" not in notices(about, other)[1].text


@pytest.mark.parametrize(
    ("size", "shape", "told"),
    [
        ((224, 224), (3, 28, 28), True),
        ((224, 224), (3, 200, 200), False),
        ((224, 224), (3, 500, 500), False),
        ((224, 224), (3, 256, 256), False),
        ((224, 224), (3, 300, 450), True),
        ((224, 224), (3, 150, 100), True),
    ],
)
def test_timms_size_against_that_of_the_data(size: tuple[int, int], shape: tuple[int, int, int], told: bool) -> None:
    found = notices(given(size=size, channels=3, mean=[0.0] * 3, std=[1.0] * 3, origins={"size": "timm"}), shape=shape)
    assert kinds(found) == (["guessed-size"] if told else [])
    assert notices(given(size=size, origins={"size": "configuration"}), shape=shape) == []


def test_timms_size_is_not_doubted_where_the_network_takes_no_other() -> None:
    about = given(size=(224, 224), origins={"size": "timm"})
    refused = reading("28 x 28 pixels", 0, n=0, input_size=28)
    refused.not_tried = "the network does not take it (height 28 does not match 224)"
    assert notices(about, [ASSUMED, refused]) == []
    assert kinds(notices(about, [ASSUMED, refused, reading("x", 90, input_size=32)])) == ["guessed-size"]


def test_class_orders_that_differ_are_told_where_the_model_names_no_classes() -> None:
    about = given(origins={"classes": "data"})
    rows = [ASSUMED, reading("x", 60, classes=["Pneumonia", "normal"])]
    (notice,) = notices(about, rows, names=NAMES)
    assert notice.kind == "class-order"
    for part in ("normal, Pneumonia", "Pneumonia, normal", "ImageFolder", "55.0 %", "30.0 %", "`classes`"):
        assert part in notice.text
    assert notices(about, rows, names=("a", "b")) == []
    assert notices(given(), rows, names=NAMES) == []
    better = [ASSUMED, reading("x", 165, True, classes=["Pneumonia", "normal"])]
    assert kinds(notices(about, better, names=NAMES)) == ["other-reading-better"]


def test_an_order_that_somebody_wrote_down_and_the_images_confirm_is_not_doubted() -> None:
    about, turned = given(origins={"classes": "data"}), ["Pneumonia", "normal"]
    worse = reading("x", 60, classes=turned)
    worse.p_value = 1e-6
    assert input_notices("it", about, [ASSUMED, worse], (1, 28, 28), NAMES, stated=True) == []
    assert kinds(input_notices("it", about, [ASSUMED, worse], (1, 28, 28), NAMES)) == ["class-order"]
    unclear = reading("x", 100, classes=turned)
    unclear.p_value = 0.4
    assert kinds(input_notices("it", about, [ASSUMED, unclear], (1, 28, 28), NAMES, stated=True)) == ["class-order"]
    assert kinds(input_notices("it", about, [ASSUMED], (1, 28, 28), NAMES, stated=True)) == ["class-order"]


def test_long_lists_of_classes_are_cut() -> None:
    names = tuple(str(i) for i in range(200))
    (notice,) = notices(given(classes=list(names), origins={"classes": "data"}), names=names)
    assert "(200 classes)" in notice.text
    assert len(notice.text) < 400


def answers(predicted: list[int], labels: list[int], names: tuple[str, ...] = ("a", "b", "c")) -> list[Notice]:
    return answer_notices("it", torch.tensor(predicted), torch.tensor(labels), names)


def test_a_model_that_answers_one_class_is_told() -> None:
    (notice,) = answers([1] * 9, [0, 1, 2] * 3)
    assert notice.kind == "one-class"
    assert "'b'" in notice.text
    assert kinds(answers([1] * 199 + [0], [0, 1] * 100)) == ["one-class"]
    assert kinds(answers([1] * 90 + [0] * 10, [0, 1] * 50)) == []


def test_a_good_model_on_nearly_one_class_is_not_told() -> None:
    labels = [0] * 995 + [1] * 5
    assert answers(labels, labels) == []
    assert kinds(answers([0] * 1000, labels)) == ["one-class"]
    assert answers([0] * 10, [0] * 10) == []


def test_accuracy_below_chance_is_told_and_bad_luck_is_not() -> None:
    labels = [0, 1] * 50
    assert kinds(answers([1 - x for x in labels], labels, ("a", "b"))) == ["below-chance"]
    (notice,) = answers([1, 2, 0] * 40, [0, 1, 2] * 40)
    assert "0.0 % of 120 images" in notice.text
    assert "33.3 %" in notice.text
    unlucky = [x if i < 45 else 1 - x for i, x in enumerate(labels)]
    assert answers(unlucky, labels, ("a", "b")) == []
    assert answers([1, 0], [0, 1], ("a", "b")) == []


def test_no_images_are_no_evidence() -> None:
    assert answer_notices("it", torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long), ("a", "b")) == []
