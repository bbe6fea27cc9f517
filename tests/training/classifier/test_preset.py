"""The presets are the thesis' tables, to the letter; the file has the last word."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from audit.classifiers.load import load_classifier
from audit.config import ClassifierConfig, parse_config
from audit.errors import ConfigError
from audit.training.classifier.config import ClassifierTrainConfig, load_classifier_train_config
from audit.training.classifier.train import train_classifier

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def config(preset: str, **more: Any) -> ClassifierTrainConfig:
    values = {"name": "x", "preset": preset, "data": {"path": "images"}} | more
    return parse_config(ClassifierTrainConfig, values, "test")


@pytest.mark.parametrize("preset", ["spruce-plain", "spruce-trades"])
def test_what_both_trainings_share_is_section_6_2_1(preset: str) -> None:
    found = config(preset)
    assert found.architecture == "convnext_base.fb_in1k"
    assert found.initial == "timm"
    assert (found.mean, found.std) == IMAGENET
    assert found.data.channels == 3
    assert found.objective.label_smoothing == 0.05
    assert found.objective.class_weights == "balanced"
    assert found.optimiser.precision == "bfloat16"
    assert (found.selection.every_epochs, found.selection.patience) == (1, 20)
    assert found.augmentation.model_dump() == {
        "shift": 0,
        "flip": 0.3,
        "crop": 0.75,
        "rotation": 10,
        "translation": 0.02,
        "scaling": 0.05,
        "shear": 5,
        "brightness": 0.2,
        "contrast": 0.2,
    }


def test_plain_is_table_6_2() -> None:
    found = config("spruce-plain")
    assert found.objective.kind == "plain"
    assert found.optimiser.lr == 5e-4
    assert found.optimiser.epochs == 100
    assert found.optimiser.warmup * found.optimiser.epochs == 10
    assert found.optimiser.batch_size == 64
    assert found.optimiser.weight_decay == 5e-2
    assert found.selects_by == "clean"


def test_trades_is_table_6_4() -> None:
    found = config("spruce-trades")
    assert found.objective.kind == "trades"
    assert found.optimiser.lr == 1e-4
    assert found.optimiser.epochs == 100
    assert found.optimiser.warmup * found.optimiser.epochs == 10
    assert found.optimiser.batch_size == 16
    assert found.optimiser.weight_decay == 5e-2
    assert found.objective.beta == 6.0
    assert found.objective.eps == "8/255"
    assert found.objective.step_size == 8 / 255 / 4
    assert found.objective.steps == 10
    assert found.objective.norm == "Linf"
    assert found.selects_by == "robust"


@pytest.mark.parametrize("eps", ["1/255", "2/255"])
def test_the_step_follows_the_radius(eps: str) -> None:
    found = config("spruce-trades", objective={"eps": eps})
    assert found.objective.step_size == pytest.approx(int(eps[0]) / 255 / 4)
    assert config("spruce-trades", objective={"eps": eps, "step_size": 0.001}).objective.step_size == 0.001


def test_the_file_overrides_the_preset() -> None:
    found = config(
        "spruce-trades",
        architecture="resnet18",
        initial="none",
        mean=False,
        data={"path": "images", "channels": False},
        objective={"beta": 3, "class_weights": False},
        optimiser={"steps": 7, "lr": 1e-3},
        selection={"every": 5, "patience": False},
        augmentation={"flip": False, "rotation": 20},
    )
    assert (found.architecture, found.initial, found.mean, found.data.channels) == ("resnet18", "none", None, None)
    assert (found.objective.beta, found.objective.class_weights, found.objective.steps) == (3, None, 10)
    assert (found.optimiser.steps, found.optimiser.epochs, found.optimiser.lr) == (7, None, 1e-3)
    assert (found.selection.every, found.selection.every_epochs, found.selection.patience) == (5, None, None)
    assert (found.augmentation.flip, found.augmentation.rotation, found.augmentation.shear) == (0.0, 20, 5)


@pytest.mark.parametrize("preset", ["spruce-plain", "spruce-trades"])
def test_a_written_configuration_reads_back_as_itself(preset: str) -> None:
    found = config(preset, optimiser={"steps": 7}, objective={"class_weights": False})
    assert parse_config(ClassifierTrainConfig, found.model_dump(mode="json"), "card") == found


def test_errors_keep_their_words() -> None:
    with pytest.raises(ConfigError, match="preset"):
        config("spruce")
    with pytest.raises(ConfigError, match=r"objective\.eps.*not a number"):
        config("spruce-trades", objective={"eps": "eight"})
    with pytest.raises(ConfigError, match="'objective'"):
        config("spruce-trades", objective="trades")
    with pytest.raises(ConfigError, match=r"selection\.eps 3"):
        config("spruce-trades", selection={"eps": 3})


def test_a_path_to_initial_weights_is_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "training.toml"
    text = 'name = "x"\npreset = "spruce-plain"\ninitial = "{}"\n[data]\npath = "images"\n'
    file.write_text(text.format("weights/first.safetensors"))
    assert load_classifier_train_config(file).initial == str(tmp_path / "weights" / "first.safetensors")
    for name in ("none", "timm", "shipped:plain"):
        file.write_text(text.format(name))
        assert load_classifier_train_config(file).initial == name


def test_a_preset_trains_on_grey_images_with_a_smaller_network(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 64), ("val", 8), ("test", 8)):
        arrays[f"{split}_images"] = draw.integers(0, 255, (n, 32, 32), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n)[:, None] % 2
    np.savez(tmp_path / "set.npz", **arrays)
    (tmp_path / "training.toml").write_text(
        'name = "x"\npreset = "spruce-trades"\narchitecture = "test_convnext"\ninitial = "none"\ndevice = "cpu"\n'
        '[data]\npath = "set.npz"\n[optimiser]\nepochs = 2\n[evaluation]\nattacked = 4\nsteps = 1\n'
        "[selection]\nattack_steps = 1\npatience = 1\n"
    )
    weights = train_classifier(load_classifier_train_config(tmp_path / "training.toml"), tmp_path)
    card = json.loads(weights.with_suffix(".json").read_text())
    assert (card["preset"], card["precision"], card["objective"]) == ("spruce-trades", "bfloat16", "trades")
    assert [step for step, _ in card["selection"]["history"]] == [4, 8]
    assert card["config"]["mean"] == list(IMAGENET[0])
    loaded = load_classifier(
        ClassifierConfig(name="x", architecture="test_convnext", checkpoint=str(weights)), (1, 32, 32), card["classes"]
    )
    assert loaded(torch.rand(2, 1, 32, 32)).shape == (2, 2)
