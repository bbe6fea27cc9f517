"""A classifier's training killed for good, or just before its card, ends in the same files as one that was not."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from audit.config import parse_config
from audit.training.classifier import train as classifier
from audit.training.classifier.config import ClassifierTrainConfig
from audit.training.classifier.train import train_classifier
from audit.training.shared import loop

ROOT = Path(__file__).parents[3]
VALUES: dict[str, Any] = {
    "name": "tiny",
    "device": "cpu",
    "architecture": "test_convnext",
    "data": {"path": "phantom"},
    "objective": {"kind": "trades", "eps": "2/255", "steps": 1, "class_weights": "balanced"},
    "optimiser": {"steps": 8, "batch_size": 4, "ema": 0.9, "lr": 1e-4},
    "augmentation": {"flip": 0.3, "crop": 0.75, "rotation": 10, "contrast": 0.2},
    "selection": {"every": 2, "n": 4, "attack_steps": 1, "patience": 2},
    "evaluation": {"n": 4, "attacked": 4, "steps": 1, "eps": ["2/255"]},
}
CHILD = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
from audit.config import parse_config
from audit.training.classifier import train as classifier
from audit.training.shared import loop
from audit.training.classifier.config import ClassifierTrainConfig

loop.CHECKPOINT_SECONDS = 0.0
whole = classifier.phantom_stream

def dying(config, group):
    stream = whole(config, group)
    def batch(step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return stream.batch(step)
    return replace(stream, batch=batch)

classifier.phantom_stream = dying
classifier.train_classifier(parse_config(ClassifierTrainConfig, json.loads(sys.argv[1]), "test"), Path(sys.argv[2]))
"""


def card_of(weights: Path) -> dict[str, Any]:
    card = json.loads(weights.with_suffix(".json").read_text())
    assert card.pop("seconds") > 0
    return dict(card)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_classifier(parse_config(ClassifierTrainConfig, VALUES, "test"), tmp_path_factory.mktemp("whole"))


def test_a_killed_process_leaves_all_that_the_next_needs(whole: Path, tmp_path: Path) -> None:
    killed = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps(VALUES), str(tmp_path)], cwd=ROOT, timeout=200, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.checkpoint.pt"]
    resumed = train_classifier(parse_config(ClassifierTrainConfig, VALUES, "test"), tmp_path)
    assert resumed.read_bytes() == whole.read_bytes()
    assert card_of(resumed) == card_of(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.json", "tiny.safetensors"]


def test_a_kill_before_the_card_costs_the_scores_only(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse_config(ClassifierTrainConfig, VALUES, "test")
    with monkeypatch.context() as broken:
        broken.setattr(classifier, "write_card", lambda path, content: (_ for _ in ()).throw(InterruptedError))
        with pytest.raises(InterruptedError):
            train_classifier(config, tmp_path)
    steps: list[int] = []
    monkeypatch.setattr(loop, "learning_rate_share", lambda step, *rest: steps.append(step))
    resumed = train_classifier(config, tmp_path)
    assert steps == []
    assert resumed.read_bytes() == whole.read_bytes()
    assert card_of(resumed) == card_of(whole)


def test_the_card_says_how_the_training_went(whole: Path) -> None:
    card = card_of(whole)
    stopped, history = card["stopped_at"], card["selection"]["history"]
    assert (card["objective"], card["preset"], card["precision"]) == ("trades", None, "float32")
    assert (card["world_size"], card["device"], card["initial"]) == (1, "cpu", {"random": True})
    assert card["steps"] == 8
    assert stopped == history[-1][0]
    assert card["images_seen"] == 4 * stopped
    assert card["reason"] == ("all steps done" if stopped == 8 else "no gain in 2 validations")
    assert card["selection"]["by"] == "PGD accuracy at 2/255"
    assert parse_config(ClassifierTrainConfig, card["config"], "card").selection.patience == 2
