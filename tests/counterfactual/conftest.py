"""A tiny real generator, a tiny real classifier fitted to tell its images apart, and what calibration says of it."""

from dataclasses import dataclass

import pytest
import torch
from support_explained import image_set
from torch import Tensor, nn

from audit.classifiers.classifier import Classifier
from audit.config import CounterfactualConfig
from audit.counterfactual.exceptional import Calibration, fit_calibration
from audit.counterfactual.iterates import operating_points
from audit.counterfactual.protocol import CalibratedClassifier, InvertedQueries
from audit.data.audit_set import AuditSet
from audit.generator.stylegan2.networks import Generator

CLASS_NAMES = ("dark", "bright")


@dataclass(frozen=True)
class Inverted:
    """Exact inversions: the queries are the generator's own images."""

    pivots: Tensor
    deltas: dict[str, Tensor]
    images: Tensor


@dataclass(frozen=True)
class World:
    """Everything that an explanation needs."""

    generator: Generator
    network: nn.Module
    classifier: Classifier
    inversion: Inverted
    queries: Tensor
    sources: Tensor
    targets: Tensor
    calibration: Calibration
    points: Tensor
    config: CounterfactualConfig
    real: AuditSet

    @property
    def subject(self) -> CalibratedClassifier:
        return CalibratedClassifier(self.classifier, self.calibration, self.points, real=self.real)

    @property
    def asked(self) -> InvertedQueries:
        return InvertedQueries(self.queries, self.sources, self.inversion)

    def wrap(self, network: nn.Module) -> Classifier:
        return wrap(network)

    def calibrate(
        self, classifier: Classifier, images: Tensor, config: CounterfactualConfig
    ) -> tuple[Calibration, Tensor]:
        return calibrate(classifier, images, config)


def tiny_network(seed: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 12, 3, 2, 1), nn.GELU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(192, 16), nn.GELU(),
            nn.Linear(16, 2),
        )  # fmt: skip


def wrap(network: nn.Module, name: str = "tiny") -> Classifier:
    return Classifier(network, name=name, class_names=CLASS_NAMES, input_shape=(1, 16, 16))


def calibrate(classifier: Classifier, images: Tensor, config: CounterfactualConfig) -> tuple[Calibration, Tensor]:
    with torch.no_grad():
        features, logits = classifier.features_and_logits(images)
    predicted = logits.argmax(1)
    calibration = fit_calibration(features, predicted, config, CLASS_NAMES, 0, classifier.name)
    return calibration, operating_points(logits.softmax(1), predicted, predicted)


@pytest.fixture(scope="session")
def images() -> Tensor:
    return _drawn()[1]


def _drawn() -> tuple[Generator, Tensor, Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        generator = Generator(16, 16, 16, 1, channel_base=128, channel_max=16).eval()
        with torch.no_grad():
            codes = generator.mapping(torch.randn(240, 16))
            return generator, generator.images(codes), codes


@pytest.fixture(scope="session")
def world() -> World:
    generator, images, codes = _drawn()
    brightness = images[:, :, 4:12, 4:12].mean((1, 2, 3))
    labels = (brightness > brightness.median()).long()
    network = tiny_network(5)
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(images), labels, label_smoothing=0.2).backward()
        optimiser.step()
    optimiser.zero_grad()
    classifier = wrap(network.eval())
    config = CounterfactualConfig(steps=100, lr=0.05, batch_size=4, min_calibration=20, mixture_components=3)
    calibration, points = calibrate(classifier, images, config)
    with torch.no_grad():
        predicted = classifier(images).argmax(1)
    rows = (predicted == labels).nonzero()[:6, 0]
    with torch.random.fork_rng():
        torch.manual_seed(4)
        deltas = {"b8.conv0.weight": 0.01 * torch.randn(len(rows), *generator.synthesis.b8.conv0.weight.shape)}
    with torch.no_grad():
        inverted = generator.images(codes[rows], deltas=deltas)
    return World(
        generator=generator,
        network=network,
        classifier=classifier,
        inversion=Inverted(codes[rows].clone(), deltas, inverted),
        queries=images[rows],
        sources=labels[rows],
        targets=1 - labels[rows],
        calibration=calibration,
        points=points,
        config=config,
        real=image_set(images, labels),
    )
