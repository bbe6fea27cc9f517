"""A classifier comes from one source, and its normalisation is of pixels in [0, 1]."""

from typing import Any

import pytest
from support_config import parsed

from audit.config import ClassifierConfig, parse_config
from audit.errors import ConfigError


@pytest.mark.parametrize(
    ("classifier", "match"),
    [
        ({}, "exactly one of .* given: none"),
        ({"architecture": "resnet18", "file": "a.pt"}, "given: architecture, file"),
        ({"architecture": "resnet18"}, "needs a checkpoint beside its architecture"),
        ({"factory": "m:f", "weights_key": "ema"}, "'weights_key' of classifier .* would have no effect"),
        ({"checkpoint": "shipped:nothing"}, "not one of the shipped weights"),
    ],
)
def test_a_classifier_comes_from_one_source(classifier: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        parsed(classifiers=[{"name": "a", **classifier}])


@pytest.mark.parametrize(
    "classifier",
    [
        {"checkpoint": "shipped:trades"},
        {"checkpoint": "a.safetensors"},
        {"architecture": "hf-hub:me/owls"},
        {"architecture": "resnet18", "checkpoint": "a.pt"},
        {"architecture": "convnext_atto", "checkpoint": "shipped:plain"},
        {"factory": "package.module:f", "checkpoint": "a.safetensors"},
        {"file": "a.pt2"},
    ],
)
def test_every_kind_of_classifier_is_accepted(classifier: dict[str, Any]) -> None:
    assert parsed(classifiers=[{"name": "a", **classifier}]).classifiers[0].name == "a"


CLASSIFIER = {"name": "it", "architecture": "resnet18", "checkpoint": "it.pt"}


def test_one_number_of_mean_and_std_and_a_square_size_are_taken() -> None:
    config = parse_config(ClassifierConfig, {**CLASSIFIER, "mean": 0.5, "std": 1, "input_size": [3, 64, 64]}, "x")
    assert (config.mean, config.std, config.input_size) == ((0.5,), (1.0,), 64)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (
            {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]},
            r"mean = \[123\.675, .* set mean = \[0\.485, 0\.456, 0\.406\], std = \[0\.229, 0\.224, 0\.225\]",
        ),
        # As the networks of Caffe: 0 to 255 less the mean, and nothing else.
        ({"mean": [104, 117, 123], "std": [1, 1, 1]}, r"set mean = \[0\.4078, .*\], std = \[0\.003922, "),
        ({"std": 57.0}, r"std = \[57\] is in units of 0 to 255 .* set std = \[0\.2235\]"),
        ({"mean": 30000.0, "std": 10000.0}, r"0 to 65535 .* set mean = \[0\.4578\], std = \[0\.1526\]"),
        ({"std": [0.2, 0.0, 0.2]}, "not above 0"),
        ({"std": -0.2}, "not above 0"),
        ({"mean": [-0.5]}, "below 0"),
        ({"mean": "0.5"}, "'0.5' is not a number or a list of numbers"),
        ({"mean": []}, "is not a number or a list of numbers"),
        ({"std": True}, "is not a number or a list of numbers"),
        ({"input_size": [224, 200]}, "is not one side of a square"),
    ],
)
def test_wrong_normalisations_are_refused_with_the_right_value(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        parse_config(ClassifierConfig, {**CLASSIFIER, **table}, "x")
    assert "\n" not in str(caught.value)
