"""The steps of robustness by hand: a model that fails keeps what was measured, and costs the others nothing."""

import pytest
import torch
from support_small_audit import Small, by_brightness, small_audit
from torch import Tensor, nn

from audit.classifiers.classifier import Classifier
from audit.pipeline.robustness import differences, measure_models


class Fails(nn.Module):
    """Passes images on, and fails as a foreign network may once it has been called `left` times."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 10**6

    def forward(self, images: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of order")
        return images


def failing(calls: int) -> Classifier:
    """A classifier that fails after so many calls, those of its loading not counted."""
    network = Fails()
    classifier = by_brightness("left", network)
    network.left = calls
    return classifier


def with_robustness(**changes: object) -> Small:
    small = small_audit()
    config = small.context.config
    settings = config.robustness.model_validate(config.robustness.model_dump() | changes)
    context = type(small.context)(
        config.model_copy(update={"robustness": settings}), small.context.base, small.context.device, None,
        small.context.watch,
    )  # fmt: skip
    return type(small)(context, small.images, small.networks, small.method, small.queries)


def test_a_model_that_fails_at_once_leaves_the_others_their_numbers():
    small = small_audit()
    alone = measure_models(small.context, small.images, [by_brightness("whole")]).models[0]
    broken, beside = measure_models(small.context, small.images, [failing(0), by_brightness("whole")]).models
    assert broken.failed is not None
    assert broken.failed.stage == "clean accuracy"
    assert "out of order" in broken.failed.why
    assert beside.robust == alone.robust
    assert {k: v.tolist() for k, v in beside.outcomes.items()} == {k: v.tolist() for k, v in alone.outcomes.items()}


def test_what_was_measured_before_a_failure_stays():
    small = small_audit()
    network = Fails()
    classifier = by_brightness("left", network)
    before = network.left
    measure_models(small.context, small.images, [classifier])
    (model,) = measure_models(small.context, small.images, [failing(before - network.left - 1)]).models
    assert model.failed is not None
    assert model.failed.stage == "robust accuracy"
    assert model.clean.accuracy.value == 1
    assert "clean.accuracy" in model.outcomes


def test_corruptions_and_a_second_source_are_steps_of_their_own():
    small = with_robustness(corruptions={"names": ["brightness"], "severities": [5]})
    small = small.with_images(foreign=small.calibration)
    (model,) = measure_models(small.context, small.images, [by_brightness("whole")]).models
    assert model.failed is None
    assert model.robust.corruptions is not None
    assert len(model.outcomes["robust.corruptions"]) == len(small.images.audited)
    assert model.robust.shift is not None
    assert model.robust.shift.n == len(small.calibration)


def test_models_are_compared_in_what_both_have():
    small = small_audit()
    models = measure_models(small.context, small.images, [by_brightness("left"), by_brightness("whole")]).models
    rows = differences(models, seed=0)
    assert {(row.a, row.b) for row in rows} == {("left", "whole")}
    assert {row.metric for row in rows} == set(models[0].outcomes)
    by_metric = {row.metric: row.difference.value for row in rows}
    pgd = next(name for name in models[0].outcomes if name.startswith("robust.pgd"))
    means = [float(m.outcomes[pgd].double().mean()) for m in models]
    assert torch.tensor(by_metric[pgd]).isclose(torch.tensor(means[0] - means[1]), atol=1e-6)


def test_every_model_is_shown_the_images_made_for_the_others():
    small = with_robustness(attacks=("pgd", "transfer"))
    models = measure_models(small.context, small.images, [by_brightness("one"), by_brightness("other")]).models
    for model, source in zip(models, ("other", "one"), strict=True):
        assert {row.source for row in model.robust.transfers} == {source}
        # Two equal models: what fools one fools the other, up to rounding on the border.
        for radius, attack in model.robust.attacks["transfer"].items():
            assert attack.robust_accuracy.value == pytest.approx(model.robust.pgd[radius].robust_accuracy.value)
        assert any(path.startswith("robust.attacks.transfer.") for path in model.outcomes)


def test_a_model_alone_has_no_transfer_and_is_told_why():
    small = with_robustness(attacks=("pgd", "transfer"))
    (model,) = measure_models(small.context, small.images, [by_brightness("alone")]).models
    assert not model.robust.attacks
    assert "no other model" in model.not_computed[-1].why
