"""FAB and Square against torchattacks, pyautoattack and foolbox on the same small networks, at equal budgets.

torchattacks' and pyautoattack's attacks seed the global random state; they are run in a fork of it.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from audit.robustness.attacks.ball import ascent, distance
from audit.robustness.attacks.fab import fab_attack, fab_minimal
from audit.robustness.attacks.square import square_attack

NORMS = ["Linf", "L2"]
CLASSES = 10
STEPS = 12
QUERIES = 200


def digits() -> tuple[Tensor, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn has the digits")
    loaded = datasets.load_digits()
    images = torch.from_numpy(loaded.images).float()[:, None] / 16
    images = functional.interpolate(images, size=16, mode="bilinear", align_corners=False)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order], torch.from_numpy(loaded.target).long()[order]


def fit(images: Tensor, labels: Tensor, eps: float) -> nn.Module:
    """Train a small network for a second or two, on images moved by one signed step of `eps` where it is not 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(1, 12, 3, 2, 1), nn.ReLU(), nn.Conv2d(12, 24, 3, 2, 1), nn.ReLU(), nn.Flatten(),
            nn.Linear(384, CLASSES),
        )  # fmt: skip
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(6):
        for batch, answer in zip(images.split(64), labels.split(64), strict=True):
            if eps > 0:
                batch = batch.clone().requires_grad_()
                (gradient,) = torch.autograd.grad(functional.cross_entropy(network(batch), answer), batch)
                batch = (batch.detach() + ascent(gradient, eps, "Linf")).clamp(0, 1)
            optimiser.zero_grad()
            functional.cross_entropy(network(batch), answer).backward()
            optimiser.step()
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=["plain", "robust"])
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with 40 images that it classifies correctly."""
    images, labels = digits()
    network = fit(images[:1200], labels[:1200], 0.1 if request.param == "robust" else 0.0)
    images, labels = images[1200:], labels[1200:]
    correct = (network(images).argmax(dim=1) == labels).nonzero()[:40, 0]
    return network, images[correct], labels[correct]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def forked(attack: Callable[[], Tensor]) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return attack().detach()


def fooled(network: nn.Module, found: Tensor, images: Tensor, labels: Tensor, eps: float, norm: str) -> int:
    """Count what fools inside the ball: a peer may return what lies outside."""
    wrong = network(found).argmax(dim=1) != labels
    return int((wrong & (distance(found, images, norm) <= eps + 1e-4)).sum())


def reached(network: nn.Module, found: Tensor, images: Tensor, labels: Tensor, norm: str) -> Tensor:
    wrong = network(found).argmax(dim=1) != labels
    return torch.where(wrong, distance(found, images, norm), torch.inf)


def radius(norm: str) -> float:
    return 0.08 if norm == "Linf" else 0.8


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("peer", ["torchattacks", "pyautoattack"])
def test_square_fools_as_many_with_as_many_queries(
    case: tuple[nn.Module, Tensor, Tensor], norm: str, peer: str
) -> None:
    network, images, labels = case
    eps = radius(norm)
    if peer == "torchattacks":
        module = pytest.importorskip("torchattacks", reason="a peer to compare with")
        attack = module.Square(network, norm=norm, eps=eps, n_queries=QUERIES)
        theirs = forked(lambda: attack(images, labels))
    else:
        module = pytest.importorskip("pyautoattack.square", reason="a peer to compare with")
        attack = module.SquareAttack(network, norm=norm, eps=eps, n_queries=QUERIES, device="cpu")
        theirs = forked(lambda: attack.perturb(images, labels))
    ours = square_attack(network, images, labels, eps=eps, norm=norm, queries=QUERIES, generator=generator())
    counts = [fooled(network, found, images, labels, eps, norm) for found in (ours, theirs)]
    # Both are random searches: 2 images of 40 are left to chance.
    assert counts[0] >= counts[1] - 2
    assert 0 < counts[0] < 40


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("peer", ["torchattacks", "pyautoattack"])
def test_fab_fools_as_many_with_as_many_steps(case: tuple[nn.Module, Tensor, Tensor], norm: str, peer: str) -> None:
    network, images, labels = case
    eps = radius(norm)
    if peer == "torchattacks":
        module = pytest.importorskip("torchattacks", reason="a peer to compare with")
        attack = module.FAB(network, norm=norm, eps=eps, steps=STEPS, multi_targeted=True, n_classes=CLASSES)
        theirs = forked(lambda: attack(images, labels))
    else:
        module = pytest.importorskip("pyautoattack.fab_pt", reason="a peer to compare with")
        attack = module.FABAttack_PT(
            network, norm=norm, n_iter=STEPS, eps=eps, targeted=True, n_target_classes=CLASSES - 1, device="cpu"
        )
        theirs = forked(lambda: attack.perturb(images, labels))
    ours = fab_attack(network, images, labels, eps=eps, norm=norm, steps=STEPS, generator=generator())
    counts = [fooled(network, found, images, labels, eps, norm) for found in (ours, theirs)]
    assert counts[0] >= counts[1] - 1
    assert 0 < counts[0] < 40


@pytest.mark.parametrize("norm", NORMS)
def test_fab_ends_as_near_as_pyautoattack(case: tuple[nn.Module, Tensor, Tensor], norm: str) -> None:
    module = pytest.importorskip("pyautoattack.fab_pt", reason="a peer to compare with")
    network, images, labels = case
    attack = module.FABAttack_PT(network, norm=norm, n_iter=STEPS, eps=1.0, targeted=True, device="cpu")
    nearest = torch.full((len(images),), torch.inf)
    for rank in range(2, CLASSES + 1):
        attack.target_class = rank
        found = forked(lambda: attack.attack_single_run(images, labels, is_targeted=True))
        nearest = nearest.minimum(reached(network, found, images, labels, norm))
    ours = fab_minimal(network, images, labels, norm=norm, steps=STEPS, generator=generator())[1]
    ratio = ours / nearest
    assert float(ratio.median()) <= 1.01
    assert float(ratio.quantile(0.9)) <= 1.05


@pytest.mark.parametrize("norm", NORMS)
def test_fab_ends_nearer_than_the_minimum_norm_attack_of_foolbox(
    case: tuple[nn.Module, Tensor, Tensor], norm: str
) -> None:
    foolbox = pytest.importorskip("foolbox", reason="a peer to compare with")
    network, images, labels = case
    # foolbox has no FAB; its fast minimum-norm attack (Pintor et al. 2021) looks for the same thing.
    attack = (foolbox.attacks.LInfFMNAttack if norm == "Linf" else foolbox.attacks.L2FMNAttack)(steps=5 * STEPS)
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    theirs = forked(lambda: attack(model, images, labels, epsilons=None)[0])
    ours = fab_minimal(network, images, labels, norm=norm, steps=STEPS, generator=generator())[1]
    ratio = ours / reached(network, theirs, images, labels, norm)
    assert float(ratio.median()) <= 1.02
