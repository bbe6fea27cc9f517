"""What judges say about counterfactuals that they had no part in making."""

from dataclasses import replace

import torch
from support_small_audit import by_brightness

from audit.config import AuditConfig
from audit.pipeline.answers import decisions
from audit.pipeline.transfer import (
    Judge,
    Panel,
    adversarial_examples,
    all_verdicts,
    checkpoint_judges,
    classifier_judge,
)


def test_nobody_judges_counterfactuals_of_its_own(small) -> None:
    left, whole = by_brightness("left"), by_brightness("whole")
    explained = [small.explained(small.subject(one)) for one in (left, whole)]
    goals = torch.tensor([0.9, 0.9])
    judges = [classifier_judge(small.context, one, 0.9, goals) for one in (left, whole)]
    judges.append(Judge("always bright", 0.5, lambda images: torch.tensor([[0.2, 0.8]]).repeat(len(images), 1), goals))
    verdicts = all_verdicts(small.context, explained, judges, small.queries)
    assert [one.judge for one in verdicts["left"]] == ["whole", "always bright"]
    assert [one.judge for one in verdicts["whole"]] == ["left", "always bright"]
    other, constant = verdicts["left"]
    # Black and white exchanged convinces the other model; its inversions are decided as the queries.
    assert torch.equal(other.counterfactuals, 1 - small.queries.labels)
    assert torch.equal(other.inversions, small.queries.labels)
    assert constant.counterfactuals.tolist() == [1] * 6
    assert other.way(explained[0].targets).tolist() == [1.0] * 6
    assert constant.way(explained[0].targets).tolist() == [0.0] * 6  # it does not move
    again = Panel(tuple(judges), verdicts).on("left", small.queries.inversion.images, explained[0].targets)
    assert [one.way(explained[0].targets).sum() for one in again] == [0, 0]
    assert torch.equal(again[0].counterfactuals, small.queries.labels)


def test_adversarial_examples_are_within_the_radius(small) -> None:
    made = adversarial_examples(small.context, by_brightness("whole"), small.queries)
    assert (made - small.queries.images).abs().max() <= 8 / 255 + 1e-6
    assert torch.equal(decisions(small.context, by_brightness("whole"), small.queries.images), small.queries.labels)


def test_a_copy_is_asked_about_its_model_only(small) -> None:
    left, whole = by_brightness("left"), by_brightness("whole")
    values = small.context.config.model_dump() | {
        "judge_checkpoints": [{"name": "again", "file": "none", "copy_of": "left"}, {"name": "panel", "file": "none"}]
    }
    context = replace(small.context, config=AuditConfig.model_validate(values))
    explained = [small.explained(small.subject(one)) for one in (left, whole)]
    judges = checkpoint_judges(
        context, [by_brightness("again"), by_brightness("panel")], small.images.audited, small.calibration
    )
    assert [(one.accuracy, one.weights_sha256) for one in judges] == [(1.0, whole.weights_sha256)] * 2
    verdicts = all_verdicts(context, explained, judges, small.queries)
    assert [(one.judge, one.is_copy) for one in verdicts["left"]] == [("again", True), ("panel", False)]
    assert [(one.judge, one.is_copy) for one in verdicts["whole"]] == [("panel", False)]
