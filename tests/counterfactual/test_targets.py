"""Which class each query image is to become."""

import dataclasses

import pytest
import torch

from audit.classifiers.black_box import BlackBox
from audit.counterfactual.targets import NOT_EXPLAINED, choose_targets, nearest_targets, runner_up
from audit.errors import ConfigError

NAMES = ("dark", "bright")


def choose(world, target: str, logits: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...] = NAMES) -> list[int]:
    def nearest(sources: torch.Tensor) -> torch.Tensor:
        return nearest_targets(world.classifier, world.generator, world.inversion, sources, world.config)

    return choose_targets(target, logits, labels, names, nearest).tolist()


def test_fixed_runner_up_and_misclassified(world) -> None:
    logits = torch.tensor([[3.0, 2, 1], [0, 1, 5], [4, 5, 0], [1, 0, 5]])
    labels = torch.tensor([0, 2, 1, 0])
    names = ("a", "b", "c")
    assert choose(world, "runner-up", logits, labels, names) == [1, 1, 0, 0]
    assert choose(world, "a", logits, labels, names) == [NOT_EXPLAINED, 0, 0, 0]
    assert choose(world, "c", logits, labels, names) == [2, NOT_EXPLAINED, 2, 0]
    with pytest.raises(ConfigError, match=r"'d'.*a, b, c"):
        choose(world, "d", logits, labels, names)


def test_of_two_classes_the_other_is_nearest(world) -> None:
    with torch.no_grad():
        logits = world.classifier(world.queries)
    assert choose(world, "nearest", logits, world.sources) == runner_up(logits).tolist() == world.targets.tolist()


def test_nearest_is_the_class_behind_the_boundary_that_the_ascent_crosses(world) -> None:
    before = world.inversion.pivots.clone()
    found = nearest_targets(world.classifier, world.generator, world.inversion, world.sources, world.config)
    assert torch.equal(found, world.targets)
    assert torch.equal(world.inversion.pivots, before)
    assert all(p.requires_grad for p in world.generator.parameters())


def test_a_black_box_has_no_slope_to_climb(world) -> None:
    black_box = world.wrap(BlackBox(lambda images: world.network(torch.from_numpy(images)).detach().numpy()))
    found = nearest_targets(black_box, world.generator, world.inversion, world.sources, world.config)
    assert found.tolist() == [NOT_EXPLAINED] * len(found)


def test_no_boundary_within_the_step_limit_is_said_so(world) -> None:
    config = world.config.model_copy(update={"steps": 1, "lr": 1e-6})
    found = nearest_targets(world.classifier, world.generator, world.inversion, world.sources, config)
    assert found.tolist() == [NOT_EXPLAINED] * len(found)
    with torch.no_grad():
        logits = torch.cat([world.classifier(world.queries), torch.full((6, 1), -50.0)], 1)
    chosen = choose(dataclasses.replace(world, config=config), "nearest", logits, world.sources, ("a", "b", "c"))
    assert chosen == world.targets.tolist()
