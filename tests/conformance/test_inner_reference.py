"""The inner maximisations of the training objectives against torchattacks, from the same random starts."""

import pytest
import torch
from torch import Tensor, nn

from audit.training.classifier.objectives.adversarial import divergence_ascent, label_ascent, uniform_start

EPS, STEPS, STEP_SIZE = 8 / 255, 10, 2 / 255


def case() -> tuple[nn.Module, Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(), nn.Linear(512, 5)
        ).eval()
        return network, torch.rand(16, 3, 8, 8), torch.randint(5, (16,))


def test_divergence_ascent_finds_the_images_of_tpgd() -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is a peer for tests only")
    network, images, labels = case()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        theirs = torchattacks.TPGD(network, eps=EPS, alpha=STEP_SIZE, steps=STEPS)(images, labels)
    generator = torch.Generator().manual_seed(3)
    ours = divergence_ascent(network, images, eps=EPS, steps=STEPS, step_size=STEP_SIZE, generator=generator)
    assert ((ours - theirs).abs() < 1e-6).float().mean() > 0.995


def test_label_ascent_finds_the_images_of_pgd() -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is a peer for tests only")
    network, images, labels = case()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        theirs = torchattacks.PGD(network, eps=EPS, alpha=STEP_SIZE, steps=STEPS, random_start=True)(images, labels)
    start = uniform_start(images, EPS, "Linf", torch.Generator().manual_seed(3))
    ours = label_ascent(network, images, labels, start, eps=EPS, steps=STEPS, step_size=STEP_SIZE)
    assert ((ours - theirs).abs() < 1e-6).float().mean() > 0.995
