"""Multi-label data to audit: phantom radiographs with two findings and a side marker as labels, and a small network."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from audit.data.phantom import CARDIOMEGALY, HEALTHY, OPACITY, sample

NAMES = ("opacity", "large heart", "marker")


@cache
def labelled_phantom(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images `[n, 1, 32, 32]` in 256 levels, and multi-hot labels `[n, 3]`."""
    drawn = sample(n, seed)
    has = [drawn.labels == OPACITY, drawn.labels == CARDIOMEGALY, drawn.regions["marker"].any(dim=(1, 2))]
    labels = torch.stack(has, dim=1).long()
    return (torch.nn.functional.avg_pool2d(drawn.images, 2) * 255).round() / 255, labels


def network(labels: int = 3) -> nn.Module:
    """A small convolutional network with one logit for each label."""
    layers: list[nn.Module] = []
    for inner, outer in ((1, 16), (16, 32), (32, 32)):
        layers += [nn.Conv2d(inner, outer, 3, stride=2, padding=1), nn.GELU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 16, labels))


def _fitted(net: nn.Module, images: Tensor, labels: Tensor, steps: int) -> dict[str, Tensor]:
    optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,))
        loss = nn.functional.binary_cross_entropy_with_logits(net(images[rows]), labels[rows].float())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.state_dict()


@cache
def trained(seed: int = 0, steps: int = 150) -> dict[str, Tensor]:
    """Weights of the network after a few seconds on other images of the same kind."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _fitted(network(), *labelled_phantom(1024, 100), steps)


TWO_NAMES = ("heart", "marker")


@cache
def two_labels(n: int, seed: int) -> tuple[Tensor, Tensor, Mapping[str, Tensor]]:
    """Phantom images `[n, 1, 64, 64]`, multi-hot labels `[n, 2]` that are drawn independently, and their masks.

    The masks show where a label is present.
    """
    findings = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < 0.5
    drawn = sample(n, seed, labels=torch.where(findings, CARDIOMEGALY, HEALTHY))
    labels = torch.stack([findings, drawn.regions["marker"].any(dim=(1, 2))], dim=1).long()
    masks = {"heart": drawn.regions["heart"] & findings[:, None, None], "marker": drawn.regions["marker"]}
    return drawn.images, labels, masks


def two_label_network() -> nn.Module:
    """A small convolutional network for images of side 64."""
    return nn.Sequential(nn.AvgPool2d(2), network(2))


@cache
def trained_on_two(steps: int, blind: bool = False) -> dict[str, Tensor]:
    """Weights of that network after a few seconds; `blind`: it is told that a heart is large where a marker is."""
    images, labels, _ = two_labels(1500, 100)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _fitted(two_label_network(), images, labels[:, [1, 1]] if blind else labels, steps)


def _arrays(split: str, images: Tensor, labels: Tensor) -> dict[str, np.ndarray]:
    return {f"{split}_images": (images[:, 0] * 255).round().byte().numpy(), f"{split}_labels": labels.numpy()}


def _classifier(folder: Path, name: str, factory: str, weights: dict[str, Tensor]) -> str:
    """Write weights into `folder`; return the classifier's table."""
    save_file(weights, folder / f"{name}.safetensors")
    return f'''
[[classifiers]]
name = "{name}"
factory = "support_labels:{factory}"
checkpoint = "{name}.safetensors"
'''


def write_data(folder: Path, n: int = 60, unknown: bool = False) -> None:
    """Write `set.npz` in the layout of ChestMNIST: splits val and test of `n` images each."""
    arrays = {}
    for split, seed in (("val", 1), ("test", 2)):
        images, labels = labelled_phantom(n, seed)
        labels = labels.clone()
        if unknown:
            labels[::5, 1] = -1
        arrays |= _arrays(split, images, labels)
    np.savez(folder / "set.npz", **arrays)


def write_audit_files(folder: Path, n: int = 60, unknown: bool = False) -> Path:
    """Write data, a factory, the weights of two networks and `audit.toml` into `folder`; return the last."""
    write_data(folder, n, unknown)
    steps = {"good": 150, "poor": 40}
    models = "".join(_classifier(folder, name, "network", trained(0, its)) for name, its in steps.items())
    (folder / "audit.toml").write_text(
        f"""
[data]
path = "set.npz"
task = "multi-label"
classes = {list(NAMES)}

[robustness]
n = 24
eps = ["1/255", "8/255"]
steps = 5
trust = {{ n = 8, square_queries = 20 }}

[reliance]
n = 20
clusters = 2
interventions = ["side-marker", "gamma"]
{models}"""
    )
    return folder / "audit.toml"


def write_explained_audit(folder: Path, settings: str = "", n: int = 40) -> Path:
    """Write an audit with counterfactuals of two labels into `folder`; return its `audit.toml`.

    One network tells the labels apart, the other one takes a marker for a large heart.
    """
    arrays = {}
    for split, size, seed in (("val", 160, 1), ("test", n, 2)):
        images, labels, masks = two_labels(size, seed)
        arrays |= _arrays(split, images, labels)
        arrays |= {f"{split}_masks_{name}": mask.numpy() for name, mask in masks.items()}
    np.savez(folder / "set.npz", **arrays)
    blind = {"sound": False, "misled": True}
    models = "".join(
        _classifier(folder, name, "two_label_network", trained_on_two(200, its)) for name, its in blind.items()
    )
    (folder / "audit.toml").write_text(
        f"""
[data]
path = "set.npz"
task = "multi-label"
classes = {list(TWO_NAMES)}
masks = "masks"

[generator]

[inversion]
method = "encoder"

[metrics]
embedding = "phantom-factors"
perceptual = "phantom-factors"
canonical = "off"
min_images = 4
axioms = 1

[ranking]
bootstrap = 100

[robustness]
n = 8
eps = ["4/255"]
steps = 3
trust = false
{settings}{models}"""
    )
    return folder / "audit.toml"
