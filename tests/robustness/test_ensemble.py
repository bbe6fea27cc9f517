"""The cascade: each stage on what still stands, and every success confirmed."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from audit.config import EnsembleConfig, RobustnessConfig
from audit.errors import ClassifierError, MetricError
from audit.robustness.attacks.apgd import apgd_attack
from audit.robustness.attacks.registry import stages_of
from audit.robustness.ensemble import Cascade, run_cascade
from audit.runtime.seeds import stage_generator

SMALL = EnsembleConfig(apgd_steps=5, fab_steps=5, square_queries=20, target_classes=3)


class Counting(nn.Module):
    """A small network that counts its forward passes, and the images that it saw."""

    def __init__(self, classes: int = 4, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = nn.Sequential(
                nn.Conv2d(1, 8, 3, padding=1),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(8 * 36, classes),
            )
        self.passes = 0
        self.rows = 0

    def forward(self, images: Tensor) -> Tensor:
        self.passes += 1
        self.rows += len(images)
        return self.network(images)


def case(n: int = 24, classes: int = 4, seed: int = 0) -> tuple[Counting, Tensor, Tensor]:
    classifier = Counting(classes, seed).eval()
    images = torch.rand(n, 1, 6, 6, generator=torch.Generator().manual_seed(seed))
    labels = classifier(images).argmax(dim=1)
    labels[:2] = (labels[:2] + 1) % classes
    classifier.passes = classifier.rows = 0
    return classifier, images, labels


def cascade(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float = 0.05,
    config: EnsembleConfig = SMALL,
    seed: int = 0,
    norm: str = "Linf",
) -> Cascade:
    return run_cascade(
        classifier,
        images,
        labels,
        eps=eps,
        norm=norm,
        attacks=stages_of(RobustnessConfig(ensemble=config)),
        seed_stage="test/0",
        seed=seed,
    )


def counts(found: Cascade) -> list[tuple[str, int, int]]:
    return [(stage.attack, stage.attacked, stage.standing) for stage in found.stages]


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("classes", [2, 3, 4, 9, 10, 1000])
def test_any_number_of_classes_runs_through_all_stages(classes: int, norm: str) -> None:
    classifier, images, labels = case(8, classes, seed=classes)
    found = cascade(classifier, images, labels, norm=norm, eps=0.02 if norm == "Linf" else 0.1)
    stages = counts(found)
    assert [stage for stage, _, _ in stages] == ["before", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert stages[0][1:] == (8, 6)
    for (_, _, standing), (_, attacked, left) in itertools.pairwise(stages):
        assert attacked == standing
        assert left <= attacked
    offset = (found.images - images).flatten(1)
    assert (offset.abs().amax(1) if norm == "Linf" else offset.norm(dim=1)).max() <= 0.1 + 1e-5


def test_what_stands_is_unchanged_and_what_does_not_is_misclassified() -> None:
    classifier, images, labels = case()
    found = cascade(classifier, images, labels)
    with torch.no_grad():
        right = classifier(found.images).argmax(dim=1) == labels
    assert torch.equal(found.standing, right)
    assert 0 < int(found.standing.sum()) < 22
    assert torch.equal(found.images[found.standing], images[found.standing])
    assert torch.equal(found.images[:2], images[:2]), "misclassified as it is"
    assert found.stages[-1].standing == int(found.standing.sum())
    assert ((found.images - images).abs() <= 0.05 + 1e-6).all()


def test_a_stage_draws_from_a_generator_of_its_own() -> None:
    classifier, images, labels = case()
    found = cascade(classifier, images, labels, config=SMALL.model_copy(update={"stages": ("apgd-ce",)}))
    whole = cascade(classifier, images, labels)
    assert counts(found) == counts(whole)[:2]
    rows = torch.arange(2, len(images))
    alone = apgd_attack(
        classifier, images[rows], labels[rows], eps=0.05, steps=5, generator=stage_generator(0, "test/0/apgd-ce")
    )
    hit = ~found.standing[rows]
    assert torch.equal(found.images[rows][hit], alone[hit])


def test_stages_after_the_last_success_meet_nothing() -> None:
    classifier, images, labels = case(n=6)
    found = cascade(classifier, images, labels, eps=1.0)
    assert counts(found)[-1] == ("square", 0, 0)
    assert not found.standing.any()


def test_mode_parameters_and_global_rng_are_untouched() -> None:
    classifier, images, labels = case(n=8)
    classifier.train()
    classifier.network[1].eval()
    classifier.network[0].weight.requires_grad_(False)
    state = {k: v.clone() for k, v in classifier.state_dict().items()}
    rng = torch.get_rng_state()
    cascade(classifier, images, labels)
    assert torch.equal(torch.get_rng_state(), rng)
    assert classifier.training
    assert not classifier.network[1].training
    assert [p.requires_grad for p in classifier.parameters()] == [False, True, True, True, True, True]
    assert all(torch.equal(v, state[k]) for k, v in classifier.state_dict().items())


def test_a_success_that_a_fresh_pass_does_not_confirm_does_not_count() -> None:
    class OnlyWithGradient(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            score = images.flatten(1).sum(dim=1) * 0 + (-1.0 if torch.is_grad_enabled() else 1.0)
            return torch.stack([score, -score], dim=1)

    found = cascade(OnlyWithGradient(), torch.rand(4, 1, 6, 6), torch.zeros(4, dtype=torch.int64))
    assert found.standing.all()
    assert found.stages[1].standing == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": (torch.rand(4, 1, 6, 6) - 0.5) / 0.25}, r"\[0, 1\]"),
        ({"labels": torch.tensor([0, 1, 2, 7])}, "classes"),
        ({"labels": torch.tensor([0, 1])}, "one per image"),
        ({"eps": 8.0}, "eps"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(change: dict, words: str) -> None:
    arguments = {"images": torch.rand(4, 1, 6, 6), "labels": torch.tensor([0, 1, 2, 0])}
    with pytest.raises(MetricError, match=words):
        cascade(Counting(), **(arguments | change))


def test_logits_that_are_not_finite_are_refused() -> None:
    classifier, images, labels = case(n=4)
    classifier.network[4].bias.data[0] = float("nan")
    with pytest.raises(ClassifierError, match="NaN"):
        cascade(classifier, images, labels)


def test_no_images_give_no_images() -> None:
    found = cascade(Counting(), torch.empty(0, 1, 6, 6), torch.empty(0, dtype=torch.int64))
    assert counts(found)[-1] == ("square", 0, 0)
