"""Whatever is wrong with what an attack is given, every attack says so in one clear sentence and does nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from audit.config import EnsembleConfig, RobustnessConfig
from audit.errors import AuditError, ClassifierError, MetricError
from audit.robustness.attacks.apgd import apgd_attack, apgd_targeted_attack
from audit.robustness.attacks.checks import where_not_finite
from audit.robustness.attacks.fab import fab_attack
from audit.robustness.attacks.pgd import pgd_attack
from audit.robustness.attacks.registry import stages_of
from audit.robustness.attacks.square import square_attack
from audit.robustness.distance import minimal_distances
from audit.robustness.ensemble import run_cascade
from audit.robustness.trust.checks import trust_checks

Call = Callable[[nn.Module, Tensor, Tensor, float], Any]


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


SHORT = RobustnessConfig(steps=2, ensemble=EnsembleConfig(apgd_steps=2))
ATTACKS: dict[str, Call] = {
    "pgd": lambda m, x, y, eps: pgd_attack(m, x, y, eps=eps, steps=2, generator=_rng()),
    "apgd": lambda m, x, y, eps: apgd_attack(m, x, y, eps=eps, steps=2, generator=_rng()),
    "apgd-t": lambda m, x, y, eps: apgd_targeted_attack(m, x, y, eps=eps, steps=2, generator=_rng()),
    "fab": lambda m, x, y, eps: fab_attack(m, x, y, eps=eps, steps=2, generator=_rng()),
    "square": lambda m, x, y, eps: square_attack(m, x, y, eps=eps, queries=5, generator=_rng()),
    "ensemble": lambda m, x, y, eps: run_cascade(
        m, x, y, eps=eps, norm="Linf", attacks=stages_of(SHORT), seed=0, seed_stage="test"
    ),
    "distance": lambda m, x, y, eps: minimal_distances(
        m, x, y, norm="Linf", largest=eps, bisections=2, steps=2, generator=_rng()
    )[1],
    "trust": lambda m, x, y, eps: trust_checks(m, x, y, SHORT, norm="Linf", eps=eps, seed=0),
}


class Broken(nn.Module):
    """Returns what no classifier should."""

    def __init__(self, answer: Tensor | tuple[Tensor, ...]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.answer


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()


def images() -> Tensor:
    return torch.rand(4, 1, 8, 8, generator=_rng())


LABELS = torch.tensor([0, 1, 2, 0])


def sentence_of(call: Call, kind: type[AuditError], *given: Any) -> str:
    with pytest.raises(kind) as caught:
        call(*given)
    text = str(caught.value)
    assert "\n" not in text
    assert text[0].isupper() or text.startswith("eps")
    assert text.endswith(".")
    return text


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("eps", [0.0, -0.1, 1.5, float("nan")])
def test_eps_outside_its_range(name: str, eps: float) -> None:
    assert "eps is" in sentence_of(ATTACKS[name], MetricError, network(), images(), LABELS, eps)


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [-1, 0, 1, 2]])
def test_labels_out_of_range(name: str, labels: list[int]) -> None:
    said = sentence_of(ATTACKS[name], MetricError, network(), images(), torch.tensor(labels), 0.1)
    assert "the classifier has 3 classes, 0 to 2" in said


@pytest.mark.parametrize("name", ATTACKS)
def test_images_that_are_normalised_already(name: str) -> None:
    normalised = (images() - 0.5) / 0.25
    assert "[0, 1] is expected" in sentence_of(ATTACKS[name], MetricError, network(), normalised, LABELS, 0.1)


@pytest.mark.parametrize("name", ATTACKS)
def test_bytes_where_floats_are_expected(name: str) -> None:
    raw = (images() * 255).byte()
    assert "x.float() / 255" in sentence_of(ATTACKS[name], MetricError, network(), raw, LABELS, 0.1)


@pytest.mark.parametrize("name", ATTACKS)
def test_wrong_channel_count(name: str) -> None:
    colour = images().expand(-1, 3, -1, -1)
    said = sentence_of(ATTACKS[name], ClassifierError, network(), colour, LABELS, 0.1)
    assert "cannot take images of 3 x 8 x 8 (channels, height, width)" in said


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (torch.full((4, 3), torch.nan), "NaN or infinite logits"),
        (torch.zeros(4), "logits [N, K]"),
        (torch.zeros(4, 1), "K >= 2"),
        ((torch.zeros(4, 3), torch.zeros(4, 3)), "tuple"),
    ],
)
def test_a_classifier_that_returns_no_finite_logits(name: str, answer: Any, words: str) -> None:
    assert words in sentence_of(ATTACKS[name], ClassifierError, Broken(answer), images(), LABELS, 0.1)


def test_what_is_not_finite_names_the_image_and_its_likely_cause():
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    images[1] = 0.0
    ids = ("a", "b", "c")
    values = torch.zeros(3, 2)
    values[1, 0] = torch.nan
    assert "image 'b', whose pixels are all 0" in where_not_finite(values, images, ids)
    values = torch.zeros(3, 2)
    values[2] = torch.inf
    assert where_not_finite(values, images, ids).startswith(" on image 'c': look at the image")
    assert "'a' and 2 more of 3: check its weights" in where_not_finite(torch.full((3, 2), torch.nan), images, ids)
    assert where_not_finite(values, images, ()) == ": check its weights and mean/std."
