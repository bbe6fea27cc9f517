"""16 bits say where to go and answer what is clear; every decision that they could change is one of float32."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from support_explained import image_set
from support_small_audit import NAMES, Small, by_brightness, findings, grey, small_audit
from torch import Tensor, nn

from audit.classifiers.classifier import Classifier
from audit.classifiers.load import load_classifier
from audit.classifiers.precision import Autocast, LowAnswers, LowGradients, in_float32
from audit.config import AuditConfig, ClassifierConfig, CorruptionsConfig, DataConfig, RobustnessConfig
from audit.data.load import load_data
from audit.pipeline.assemble import assemble
from audit.pipeline.robustness import measure_models
from audit.results import Robust
from audit.robustness.attacks.pgd import pgd_attack
from audit.robustness.corruptions.run import corruption_accuracies
from audit.robustness.evaluate import measured_robustness, robust_accuracy
from audit.robustness.panel import Panel
from audit.robustness.precision import LowPasses, low_passes
from audit.storage.stages import Stages

CPU = "cpu"


class OnlyWhenLow(nn.Module):
    """Does `change` to the images, but only in passes in 16 bits."""

    def __init__(self, change: nn.Module) -> None:
        super().__init__()
        self.change = change

    def forward(self, images: Tensor) -> Tensor:
        return self.change(images) if torch.is_autocast_enabled(CPU) else images


class Negative(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return 1 - images


class Offset(nn.Module):
    """Adds a number to both logits of brightness, of which 16 bits then leave the small difference no room."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1e-4], [1e-4]]))
            self.head.bias.copy_(torch.tensor([100 + 5e-5, 100 - 5e-5]))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.mean(dim=(1, 2, 3))[:, None])


def asked_for(precision: str, **robustness: object) -> Small:
    small = small_audit()
    values = small.context.config.model_dump()
    config = AuditConfig.model_validate(
        values | {"precision": precision, "robustness": values["robustness"] | robustness}
    )
    return replace(small, context=replace(small.context, config=config))


def test_a_shipped_classifier_decides_in_16_bits_as_in_32() -> None:
    data = load_data(DataConfig(path="phantom", phantom={"calibration": 30, "audit": 120}), 3)
    data = data.split("test")
    model = load_classifier(ClassifierConfig(name="plain", checkpoint="shipped:plain"), (1, 64, 64), data.class_names)
    low = low_passes(model, data, "bfloat16", 64)
    assert isinstance(low, LowPasses)
    images = data.images(range(8))
    with torch.no_grad():
        assert not torch.equal(Autocast(model, torch.bfloat16)(images), model(images)), "this runs in 16 bits"
    settings = RobustnessConfig(n=48, steps=5, eps=("1/255", "2/255"), trust=None, batch_size=24)
    exact, rough = (robust_accuracy(one, data, settings, 3) for one in (model, low.gradients))
    assert exact.robust.pgd["1/255"].robust_accuracy.value > exact.robust.pgd["2/255"].robust_accuracy.value > 0
    for radius, attack in exact.robust.pgd.items():
        value = rough.robust.pgd[radius].robust_accuracy.value
        assert attack.robust_accuracy.low <= value <= attack.robust_accuracy.high
        assert (exact.standing[f"robust.pgd.{radius}"] != rough.standing[f"robust.pgd.{radius}"]).sum() <= 1
    corruptions = CorruptionsConfig(n=48, names=("contrast", "gaussian_noise"), severities=(1, 3, 5))
    panel = Panel({"exact": model, "rough": low.answers})
    (_, right), (_, same) = corruption_accuracies(panel, data, corruptions, 3, batch_size=24).values()
    assert float((right != same).double().mean()) <= 1e-3
    assert 0 < float(right.double().mean()) < 1


def test_a_model_whose_decisions_change_runs_in_float32_and_says_so() -> None:
    small = asked_for("bfloat16")
    network = Classifier(Offset().eval(), name="left", class_names=NAMES, input_shape=(1, 16, 16))
    asked = measure_models(small.context, small.images, [network, by_brightness("whole")])
    refused, taken = asked.models
    alone = measure_models(small_audit().context, small.images, [network]).models[0]
    assert refused.low == ("6 of its 12 decisions on clean images differ between the two, and 0.1% of them may.")
    assert isinstance(taken.low, LowPasses)
    assert refused.robust == alone.robust
    assert taken.low.stages(Stages(given={"a": 1})).given["precision"] == "bfloat16"
    assert taken.low.stages(Stages(given={"a": 1})).given["a"] == 1
    result = assemble(small.context, findings(small, None, *asked.models))
    assert [model.precision for model in result.models] == ["float32", "bfloat16"]
    assert [(one.subject, one.kind) for one in result.notices if one.kind == "precision-refused"] == [
        ("left", "precision-refused")
    ]


class Overflows(nn.Module):
    """Numbers that float32 holds and float16 does not."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled = nn.Linear(16, 16, bias=False)
        with torch.no_grad():
            self.scaled.weight.copy_(1e5 * torch.eye(16))

    def forward(self, images: Tensor) -> Tensor:
        return self.scaled(images) / 1e5


def test_logits_that_overflow_are_refused() -> None:
    data = image_set(*grey(12, 1))
    assert isinstance(low_passes(by_brightness("left"), data, "float16", 8), LowPasses)
    refused = low_passes(by_brightness("left", Overflows()), data, "float16", 8)
    assert isinstance(refused, str)
    assert "NaN or infinite" in refused


class Brighter(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images + 0.4


def test_an_image_leaves_the_attack_only_when_it_fools_in_float32() -> None:
    # In 16 bits every dark image is called bright from the first step on; where to go is told rightly.
    classifier = by_brightness("whole", OnlyWhenLow(Brighter()))
    images, labels = (values[::2] for values in grey(16, 5))
    low = LowGradients(classifier, torch.bfloat16)
    start = torch.Generator().manual_seed(0)
    found = pgd_attack(low, images, labels, eps=0.3, steps=20, generator=start)
    with torch.no_grad():
        assert bool((classifier(found).argmax(1) != labels).all())
    settings = RobustnessConfig(eps=("76/255",), steps=20, trust=None)
    measured = robust_accuracy(low, image_set(images, labels), settings, 0)
    assert measured.robust.pgd["76/255"].robust_accuracy.value == 0


def test_what_is_called_fooled_in_16_bits_alone_stands() -> None:
    # The gradient of the negative leads away from the other class.
    classifier = by_brightness("whole", OnlyWhenLow(Negative()))
    settings = RobustnessConfig(eps=("76/255",), steps=20, trust=None)
    data = image_set(*grey(8, 5))
    measured = robust_accuracy(LowGradients(classifier, torch.bfloat16), data, settings, 0)
    assert measured.robust.pgd["76/255"].robust_accuracy.value == 1
    assert robust_accuracy(classifier, data, settings, 0).robust.pgd["76/255"].robust_accuracy.value == 0


def test_answers_that_another_class_comes_near_are_those_of_float32() -> None:
    classifier = by_brightness("whole", OnlyWhenLow(Negative()))
    images = torch.stack([torch.full((1, 16, 16), level) for level in (0.1, 0.49, 0.9)])
    with torch.no_grad():
        exact, rough = classifier(images), Autocast(classifier, torch.bfloat16)(images)
        answers = LowAnswers(classifier, torch.bfloat16, doubt=1.0)(images)
        all_again = LowAnswers(classifier, torch.bfloat16, doubt=1e9)(images)
    assert torch.equal(answers[1], exact[1])
    assert torch.equal(answers[[0, 2]], rough[[0, 2]])
    assert torch.equal(all_again, exact)


def test_gradients_that_vanish_in_16_bits_are_told_by_the_attack() -> None:
    classifier = by_brightness("whole")
    with torch.no_grad():
        # So sure that the gradient of the cross-entropy is below all that float16 holds.
        for parameter in classifier.network.network[-1].parameters():
            parameter *= 4
    data, settings = image_set(*grey(12, 1)), RobustnessConfig(eps=("8/255",), steps=3, trust=None)

    def seen(robust: Robust) -> tuple[bool | None, list[str]]:
        return robust.checks[0].passed, robust.pgd["8/255"].untrusted

    assert seen(measured_robustness(classifier, data, settings, 0).robust) == (True, [])
    passed, why = seen(measured_robustness(LowGradients(classifier, torch.float16), data, settings, 0).robust)
    assert passed is False
    assert "the attack was blind there" in why[0]


def test_passes_in_16_bits_are_known_by_the_name_of_their_classifier() -> None:
    classifier = by_brightness("left")
    low = LowGradients(classifier, torch.bfloat16)
    assert (low.name, low.differentiable, low.slices) == ("left", True, None)
    assert in_float32(low) is classifier
    assert in_float32(classifier) is classifier
    with pytest.raises(AttributeError):
        _ = low.nothing
    assert np.isclose(float(low(torch.full((1, 1, 16, 16), 0.5))[0, 0].detach()), 0, atol=1e-5)
