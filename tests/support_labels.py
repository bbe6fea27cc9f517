"""Multi-label data to audit: phantom radiographs with two findings and a side marker as labels, and a small network."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from audit.data.phantom import CARDIOMEGALY, OPACITY, sample

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


@cache
def trained(seed: int = 0, steps: int = 150) -> dict[str, Tensor]:
    """Weights of the network after a few seconds on other images of the same kind."""
    images, labels = labelled_phantom(1024, 100)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = network()
        optimiser = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(steps):
            rows = torch.randint(len(images), (64,))
            loss = nn.functional.binary_cross_entropy_with_logits(net(images[rows]), labels[rows].float())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.state_dict()


def write_data(folder: Path, n: int = 60, unknown: bool = False) -> None:
    """Write `set.npz` in the layout of ChestMNIST: splits val and test of `n` images each."""
    arrays = {}
    for split, seed in (("val", 1), ("test", 2)):
        images, labels = labelled_phantom(n, seed)
        labels = labels.clone()
        if unknown:
            labels[::5, 1] = -1
        arrays |= {f"{split}_images": (images[:, 0] * 255).round().byte().numpy(), f"{split}_labels": labels.numpy()}
    np.savez(folder / "set.npz", **arrays)


def write_audit_files(folder: Path, n: int = 60, unknown: bool = False) -> Path:
    """Write data, a factory, the weights of two networks and `audit.toml` into `folder`; return the last."""
    write_data(folder, n, unknown)
    for name, steps in (("good", 150), ("poor", 40)):
        save_file(trained(0, steps), folder / f"{name}.safetensors")
    models = "".join(
        f'\n[[classifiers]]\nname = "{name}"\nfactory = "support_labels:network"\ncheckpoint = "{name}.safetensors"\n'
        for name in ("good", "poor")
    )
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
{models}"""
    )
    return folder / "audit.toml"
