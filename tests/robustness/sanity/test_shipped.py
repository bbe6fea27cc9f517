"""The shipped classifiers on the phantom they were trained on: no other reading is called better."""

import pytest
import torch

from audit.classifiers.load import load_classifier
from audit.config import ClassifierConfig
from audit.data.phantom import phantom_set
from audit.robustness.sanity.doubts import input_notices
from audit.robustness.sanity.measure import read_otherwise, sample_of


@pytest.mark.parametrize("name", ["plain", "trades", "trades-small", "shortcut"])
def test_a_shipped_classifier_raises_no_doubt(name: str) -> None:
    data = phantom_set(30, 100, 5, 0.0)
    audited = data.split("test")
    config = ClassifierConfig(name=name, checkpoint=f"shipped:{name}")
    model = load_classifier(config, data.image_shape, data.class_names)
    readings = read_otherwise(model, sample_of(audited, 5), None, torch.device("cpu"))
    assert readings[0].accuracy.n == 100
    assert len(readings) > 8
    assert not any(one.better for one in readings)
    assert input_notices(name, model.input, readings, data.image_shape, data.class_names) == []
