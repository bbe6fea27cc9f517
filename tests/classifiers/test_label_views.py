"""Classifiers of labels: log-odds of what the network gives, thresholds, and the view of one label."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from audit.classifiers.bridge import two_classes
from audit.classifiers.classifier import Classifier
from audit.classifiers.load import load_classifier
from audit.classifiers.outputs import AnswerSettings
from audit.config import ClassifierConfig
from audit.errors import ClassifierError

NAMES = ("a", "b", "c")
IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Sure(nn.Module):
    """Gives probabilities of three labels, whose logits no linear layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([3.0, -2.0, 5.0]))

    def forward(self, images: Tensor) -> Tensor:
        return (self.scale * (images.mean(dim=(1, 2, 3))[:, None] - 0.5)).sigmoid()


def make() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4, 3))


def _classifier(network: nn.Module, names: tuple[str, ...] = NAMES) -> Classifier:
    answer = AnswerSettings(independent=True)
    return Classifier(network.eval(), name="x", class_names=names, input_shape=(1, 8, 8), answer=answer)


@pytest.mark.parametrize("sigmoid", [False, True])
@pytest.mark.parametrize("label", range(3))
def test_a_view_is_the_label_against_its_absence(sigmoid: bool, label: int) -> None:
    network = make() if not sigmoid else nn.Sequential(make(), nn.Sigmoid())
    classifier = _classifier(network)
    view = classifier.of_label(label, ("no", "yes"), limit=0.7)
    features, logits = view.features_and_logits(IMAGES)
    expected = make()(IMAGES)[:, label] - 0.7
    assert torch.allclose(logits, torch.stack([torch.zeros(5), expected], dim=1), atol=1e-5)
    assert torch.equal(view(IMAGES), logits)
    assert torch.allclose(view.head_at(IMAGES)(features), logits, atol=1e-5)
    assert torch.equal(two_classes(classifier(IMAGES), label, 0.7), logits)
    assert view.num_classes == 2
    assert classifier.num_classes == 3


def test_probabilities_of_labels_become_log_odds() -> None:
    logits = _classifier(Sure())(IMAGES)
    assert torch.allclose(logits.sigmoid(), Sure()(IMAGES), atol=1e-6)


def test_one_label_stays_one_logit() -> None:
    network = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(1, 1))
    assert _classifier(network, ("a",))(IMAGES).shape == (5, 1)


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [(None, [0.5, 0.5, 0.5]), (0.2, [0.2, 0.2, 0.2]), ({"b": 0.9}, [0.5, 0.9, 0.5])],
)
def test_thresholds(tmp_path: Path, threshold: object, expected: list[float]) -> None:
    classifier = _loaded(tmp_path, threshold, independent=True)
    assert torch.tensor(classifier.limits).sigmoid().tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("threshold", "independent", "match"),
    [({"d": 0.5}, True, "'d', which is no label"), ({"a": 0.5}, False, "of single labels")],
)
def test_thresholds_refused(tmp_path: Path, threshold: object, independent: bool, match: str) -> None:
    with pytest.raises(ClassifierError, match=match):
        _loaded(tmp_path, threshold, independent=independent)


def _loaded(tmp_path: Path, threshold: object, *, independent: bool) -> Classifier:
    save_file(make().state_dict(), tmp_path / "weights.safetensors")
    config = ClassifierConfig.model_validate(
        {
            "name": "x",
            "factory": f"{Path(__file__)}:make",
            "checkpoint": str(tmp_path / "weights.safetensors"),
            "threshold": threshold,
        }
    )
    return load_classifier(config, (1, 8, 8), NAMES, independent=independent)
