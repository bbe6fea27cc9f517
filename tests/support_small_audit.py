"""A small audit by hand: grey 16x16 images, two classifiers with weights set by hand, inversions that are exact."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from support_explained import Differences, image_set
from torch import Tensor, nn

from audit.classifiers.classifier import Classifier
from audit.config import AuditConfig
from audit.counterfactual.answers import judged
from audit.counterfactual.methods import ChosenMethod
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, InvertedQueries, SearchNetworks
from audit.data.audit_set import AuditSet
from audit.generator.protocol import Generator, LoadedGenerator
from audit.inversion.deltas import NOTHING
from audit.inversion.invert import Inversion
from audit.pipeline.assemble import Findings
from audit.pipeline.calibrate import calibrate
from audit.pipeline.context import Context
from audit.pipeline.explain import Explained, Subject, explain_model
from audit.pipeline.first_look import Look
from audit.pipeline.images import Images
from audit.pipeline.meaningfulness import Meaningfulness
from audit.pipeline.models import Models
from audit.pipeline.networks import Networks
from audit.pipeline.queries import Queries
from audit.pipeline.robustness import Measured, Robustness
from audit.results import DataRead, Failure
from audit.robustness.accuracy import clean_of_logits, predict
from audit.runtime.environment import Stopwatch
from audit.runtime.progress import Advance

NAMES = ("dark", "bright")


def by_brightness(name: str, network: nn.Module | None = None) -> Classifier:
    """Decides by the mean of the left half ("left") or of the whole image (any other name), at a half."""
    head = nn.Linear(4, 2)
    with torch.no_grad():
        weight = torch.tensor([2.0, 0, 2, 0] if name == "left" else [1.0, 1, 1, 1]) * 5
        head.weight.copy_(torch.stack([-weight, weight]))
        head.bias.copy_(torch.tensor([10.0, -10.0]))
    body = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())
    layers = [body, head] if network is None else [network, body, head]
    return Classifier(nn.Sequential(*layers).eval(), name=name, class_names=NAMES, input_shape=(1, 16, 16))


@dataclass(frozen=True)
class Mirrored:
    """A method without a search: every counterfactual is the inversion with black and white exchanged."""

    def explain(
        self,
        subject: CalibratedClassifier,
        networks: SearchNetworks,
        queries: InvertedQueries,
        targets: Tensor,
        advance: Advance,
    ) -> Counterfactuals:
        return judged(subject, queries, targets, 1 - queries.inversion.images)


class PixelGenerator(Generator):
    """A code is the image itself, so that every image can be inverted."""

    resolution, channels, num_ws, w_dim = 16, 1, 1, 256
    tunable: Mapping[str, torch.Size] = {}
    weights_sha256 = "0" * 64
    mean_code = torch.full((256,), 0.5)

    def random_codes(self, n: int, rng: torch.Generator) -> Tensor:
        return torch.rand(n, 256, generator=rng)

    def draw(self, ws: Tensor, deltas: Mapping[str, Tensor] | None = None) -> Tensor:
        return ws.view(-1, 1, 16, 16)

    def images(self, ws: Tensor, deltas: Mapping[str, Tensor] | None = None) -> Tensor:
        return self.draw(ws, deltas).clamp(0, 1)


def grey(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images `[n, 1, 16, 16]` around .25 (class 0) and .75 (class 1), in turn, with some noise."""
    labels = torch.arange(n) % 2
    noise = torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) - 0.5
    return (0.25 + 0.5 * labels.view(-1, 1, 1, 1) + 0.3 * noise).clamp(0, 1), labels


@dataclass(frozen=True)
class Small:
    """Everything that a stage is given."""

    context: Context
    images: Images
    networks: Networks
    method: ChosenMethod
    queries: Queries

    @property
    def calibration(self) -> AuditSet:
        assert self.images.calibration is not None
        return self.images.calibration

    def subject(self, classifier: Classifier) -> Subject:
        audited = self.images.audited
        logits = predict(classifier, audited, 16, self.context.device)
        clean = clean_of_logits(logits, audited.row_labels, NAMES)
        return Subject(calibrate(self.context, classifier, self.calibration), logits, clean)

    def explained(self, subject: Subject) -> Explained:
        return explain_model(self.context, self.method, self.networks, self.queries, subject)

    def with_images(self, **changes: object) -> "Small":
        return replace(self, images=replace(self.images, **changes))  # type: ignore[arg-type]


def configured(**changes: object) -> AuditConfig:
    values: dict[str, object] = {
        "data": {"path": "none"},
        "classifiers": [{"name": "left", "file": "none"}, {"name": "whole", "file": "none"}],
        "queries": {"n": 6, "target": "runner-up"},
        "counterfactual": {"min_calibration": 5, "features": "hurdle"},
        "inversion": {"method": "optimise", "pivot_steps": 60, "perceptual_weight": 0},
        "metrics": {"min_images": 3},
        "ranking": {"bootstrap": 100},
        "robustness": {"n": 8, "steps": 2, "eps": ["8/255"], "trust": False},
    }
    return AuditConfig.model_validate(values | changes)


def small_audit() -> Small:
    context = Context(configured(), Path.cwd(), torch.device("cpu"), None, Stopwatch())
    audited, calibration = image_set(*grey(12, 1)), image_set(*grey(40, 2))
    seen = Differences(4)
    rows = audited.select(torch.arange(6))
    drawn, nothing = rows.images(), torch.zeros(6)
    inversion = Inversion(drawn.flatten(1)[:, None], NOTHING, drawn, nothing, None, None, nothing, "optimise")
    read = DataRead(audit_split="test", calibration_split="calibration", splits={}, white=None)
    return Small(
        context=context,
        images=Images(audited, audited, "0" * 64, calibration, None, read, ()),
        networks=Networks(LoadedGenerator(PixelGenerator(), "sha"), None, seen, seen),
        method=ChosenMethod("mirrored", "outside 1.0", 0, Mirrored()),
        queries=Queries(rows, torch.arange(6), inversion),
    )


def findings(small: Small, found: Meaningfulness | None, *models: Measured) -> Findings:
    config = small.context.config
    failed = {one.name: Failure(stage="loading", why="not there") for one in config.classifiers}
    classifiers = tuple(one.classifier for one in models)
    loaded = Models(classifiers, {name: why for name, why in failed.items() if name not in {m.name for m in models}})
    return Findings(small.images, loaded, {m.name: Look() for m in models}, {}, Robustness(models, ()), found)


def measured(small: Small, name: str, **more: object) -> Measured:
    subject = small.subject(by_brightness(name))
    return Measured(subject.classifier, subject.clean, subject.logits, **more)  # type: ignore[arg-type]
