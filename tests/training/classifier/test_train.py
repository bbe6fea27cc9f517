"""A tiny training end to end: weights that load again, a card with scores, errors in one sentence."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from audit.classifiers.load import load_classifier
from audit.config import ClassifierConfig, parse_config
from audit.errors import ClassifierError, ConfigError
from audit.robustness.accuracy import clean_metrics
from audit.training.classifier.config import (
    ClassifierTrainConfig,
    load_classifier_train_config,
    load_factors_train_config,
)
from audit.training.classifier.initial import build_network
from audit.training.classifier.train import PixelModel, check_takes, normalisation, train_classifier, validation_score
from audit.training.shared.stream import held_out_phantom

CONFIGS = Path(__file__).parents[3] / "benchmarks" / "phantom"


def config(**change: object) -> ClassifierTrainConfig:
    values: dict[str, object] = {
        "name": "tiny",
        "data": {"path": "phantom"},
        "objective": {"kind": "trades", "eps": "2/255", "steps": 1},
        "optimiser": {"steps": 3, "batch_size": 6},
        "selection": {"every": 2, "n": 6, "attack_steps": 1},
        "evaluation": {"n": 8, "attacked": 4, "steps": 1, "eps": ["2/255"], "marker_correlations": [0.0, 1.0]},
    }
    return parse_config(ClassifierTrainConfig, values | change, "test")


def test_a_trained_classifier_has_weights_metadata_and_card(tmp_path: Path) -> None:
    path = train_classifier(config(), tmp_path / "out")
    assert sorted(p.name for p in path.parent.iterdir()) == ["tiny.json", "tiny.safetensors"]
    with safe_open(str(path), framework="pt") as opened:
        metadata = {key: json.loads(value) for key, value in opened.metadata().items()}
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    assert metadata["classes"] == ["healthy", "opacity", "cardiomegaly"]
    assert (metadata["architecture"], metadata["channels"], metadata["input_size"]) == ("small-convnext", 1, 64)
    assert set(tensors) == set(build_network("small-convnext", 3, 1, {}, seed=0).state_dict())
    source = ClassifierConfig(name="x", architecture="small-convnext", checkpoint=str(path))
    loaded = load_classifier(source, (1, 64, 64), metadata["classes"])
    card = json.loads(path.with_suffix(".json").read_text())
    assert [score["data"] for score in card["scores"]] == [
        "phantom, marker correlation 0",
        "phantom, marker correlation 1",
    ]
    held_out = held_out_phantom(8, config().seed, "evaluation", 0.0)
    written, scored = card["scores"][0]["clean"], clean_metrics(loaded, held_out).model_dump()
    # Means of probabilities, which another division into batches rounds otherwise.
    written_bins, scored_bins = written.pop("confidence_bins"), scored.pop("confidence_bins")
    assert written.pop("ece") == pytest.approx(scored.pop("ece"))  # of the same means
    assert written == scored, "the file holds what was scored"
    for one, other in zip(written_bins, scored_bins, strict=True):
        assert one.pop("confidence") == pytest.approx(other.pop("confidence"))
        assert one == other
    assert card["scores"][0]["robust"]["pgd"]["2/255"]["robust_accuracy"]["n"] == 4
    assert card["images_seen"] == 18
    assert {"torch", "timm", "python"} <= set(card["versions"])


def test_equal_seeds_give_equal_weights(tmp_path: Path) -> None:
    files = [train_classifier(config(), tmp_path / name).read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_normalisation_is_measured_or_given() -> None:
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    mean, std = normalisation(config(), images)
    assert mean == pytest.approx((0.5,), abs=0.02)
    assert std == pytest.approx((12**-0.5,), abs=0.02)
    assert normalisation(config(mean=[0.1], std=[0.2]), images) == ((0.1,), (0.2,))
    assert normalisation(config(), torch.full((4, 1, 8, 8), 0.5))[1][0] > 0
    with pytest.raises(ConfigError, match="one per channel"):
        normalisation(config(mean=[0.1, 0.2, 0.3]), images)


def test_pixel_model_normalises() -> None:
    model = PixelModel(torch.nn.Identity(), (0.5,), (0.25,))
    assert torch.equal(model(torch.ones(1, 1, 2, 2)), torch.full((1, 1, 2, 2), 2.0))


def test_unknown_architectures_and_arguments_are_refused() -> None:
    with pytest.raises(ClassifierError, match="timm"):
        build_network("no-such-network", 3, 1, {}, seed=0)
    with pytest.raises(ClassifierError, match="architecture_args"):
        build_network("small-convnext", 3, 1, {"depth": 3}, seed=0)


def test_images_that_do_not_fit_the_network_are_refused_before_training(tmp_path: Path) -> None:
    small = PixelModel(build_network("test_convnext", 3, 1, {}, seed=0), (0.5,), (0.25,))
    with pytest.raises(ClassifierError, match=r"'test_convnext' cannot take images of \(1, 20, 20\).*image_size"):
        check_takes(small, "test_convnext", (1, 20, 20))
    with pytest.raises(ClassifierError, match=r"cannot take images of \(1, 64, 64\)"):
        train_classifier(config(architecture="deit_tiny_patch16_224"), tmp_path)


def test_unknown_keys_name_the_nearest() -> None:
    with pytest.raises(ConfigError, match="objective"):
        config(objectve={"kind": "plain"})
    with pytest.raises(ConfigError, match="exactly one of epochs and steps"):
        config(optimiser={"steps": 3, "epochs": 2})


@pytest.mark.parametrize("name", ["plain", "trades", "trades-small", "shortcut"])
def test_the_shipped_configurations_are_valid(name: str) -> None:
    shipped = load_classifier_train_config(CONFIGS / f"{name}.toml")
    assert shipped.name == name
    assert shipped.data.phantom.marker_correlation == (1.0 if name == "shortcut" else 0.0)


def test_the_shipped_factors_configuration_is_valid() -> None:
    assert load_factors_train_config(CONFIGS / "phantom-factors.toml").name == "phantom-factors"


@pytest.mark.parametrize(
    ("objective", "by", "chosen"),
    [
        ({"kind": "plain"}, "auto", "clean"),
        ({"kind": "vat"}, "auto", "clean"),
        *(({"kind": kind}, "auto", "robust") for kind in ("pgd-at", "trades", "mart", "awp-trades", "ald")),
        ({"kind": "plain"}, "robust", "robust"),
        ({"kind": "trades"}, "clean", "clean"),
    ],
)
def test_what_the_checkpoint_is_chosen_by(objective: dict[str, str], by: str, chosen: str) -> None:
    assert config(objective=objective, selection={"by": by}).selects_by == chosen


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_robust_selection_attacks_in_the_objectives_norm(norm: str) -> None:
    images = held_out_phantom(8, 0, "validation", 0.0)
    network = PixelModel(build_network("test_convnext", 3, 1, {}, seed=0), (0.5,), (0.25,))
    chosen = {"by": "robust", "attack_steps": 5, "n": 8}
    clean = validation_score(config(objective={"kind": "plain"}), network, images)
    harmless, deadly = (
        validation_score(
            config(objective={"kind": "trades", "norm": norm, "eps": "8/255"}, selection=chosen | {"eps": eps}),
            network,
            images,
        )
        for eps in ("1e-9", "1" if norm == "Linf" else "60")
    )
    assert harmless == clean > 0
    assert deadly < clean
