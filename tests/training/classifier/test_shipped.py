"""The shipped weights: each belongs to its card and its configuration, and has the properties it was trained for."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

import audit
from audit.classifiers.load import load_classifier
from audit.config import ClassifierConfig
from audit.data import phantom
from audit.robustness.accuracy import clean_metrics
from audit.training.classifier.config import load_classifier_train_config, load_factors_train_config
from audit.training.generator.config import FILES, load_generator_train_config, portable
from audit.training.generator.mapping_config import load_fit_mapping_config, portable_fit
from audit.training.shared.stream import held_out_phantom

WEIGHTS = Path(audit.__file__).parent / "assets"
CONFIGS = Path(__file__).parents[3] / "benchmarks" / "phantom"
CLASSIFIERS = ("plain", "plain-again", "trades", "trades-small", "shortcut", "shortcut-again")


def card(kind: str, name: str) -> dict[str, Any]:
    return json.loads((WEIGHTS / kind / f"{name}.json").read_text())


def accuracies(name: str, row: int = 0) -> tuple[float, float, float]:
    """Accuracy on clean images and under PGD-20 at 2/255 and 8/255, as the card states them."""
    scores = card("classifiers", name)["scores"][row]
    pgd = scores["robust"]["pgd"]
    attacked = [pgd[eps]["robust_accuracy"]["value"] for eps in ("2/255", "8/255")]
    return (scores["clean"]["accuracy"]["value"], attacked[0], attacked[1])


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("classifiers", n) for n in CLASSIFIERS),
        ("embeddings", "phantom-factors"),
        ("generators", "phantom"),
        ("encoders", "phantom"),
    ],
)
def test_card_names_the_weights_beside_it(kind: str, name: str) -> None:
    content = (WEIGHTS / kind / f"{name}.safetensors").read_bytes()
    assert card(kind, name)["weights_sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("name", [*CLASSIFIERS, "phantom-factors"])
def test_card_states_the_configuration_that_anyone_can_run_again(name: str) -> None:
    factors = name == "phantom-factors"
    load = load_factors_train_config if factors else load_classifier_train_config
    now = load(CONFIGS / f"{name}.toml")
    # Read as a configuration of today: a key that came later stands in no card and has to mean what it did without it.
    stated = type(now).model_validate(card("embeddings" if factors else "classifiers", name)["config"])
    assert stated.model_copy(update={"device": now.device}) == now


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_shipped_classifier_is_as_accurate_as_its_card_says(name: str) -> None:
    classifier = load_classifier(
        ClassifierConfig(name=name, checkpoint=f"shipped:{name}"), (1, 64, 64), phantom.CLASS_NAMES
    )
    correlation = 1.0 if name.startswith("shortcut") else 0.0
    measured = clean_metrics(classifier, held_out_phantom(150, 4711, "evaluation", correlation)).accuracy
    assert measured.low <= accuracies(name)[0] <= measured.high


def test_robustness_orders_the_classifiers() -> None:
    plain, small, robust = (accuracies(name) for name in ("plain", "trades-small", "trades"))
    assert plain[0] > 0.93
    assert plain[2] < 0.1
    assert plain[2] < small[2] < robust[2]
    assert robust[0] > 0.8
    assert robust[2] > 0.6


def test_shortcut_falls_where_the_marker_says_nothing() -> None:
    assert accuracies("shortcut", row=0)[0] > 0.97
    assert accuracies("shortcut", row=1)[0] < 0.75


def without_later_keys(asked: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    """Leave out what a card that was written earlier cannot know; such a key has to be unset, or to be found out."""
    assert all(asked[key] in (None, False, {}, [], "auto") for key in asked.keys() - kept.keys())
    return {
        key: without_later_keys(value, kept[key]) if isinstance(value, dict) else value
        for key, value in asked.items()
        if key in kept
    }


def test_the_generator_comes_from_the_configuration_that_is_said_to_have_made_it() -> None:
    asked = load_generator_train_config(CONFIGS / "generator.toml").resolved(64)
    kept = card("generators", "phantom")["config"]
    assert kept == without_later_keys(portable(asked, *FILES), kept)
    fitted = load_fit_mapping_config(CONFIGS / "mapping.toml")
    kept = card("generators", "phantom")["mapping"]["config"]
    assert kept == without_later_keys(portable_fit(fitted), kept)
