"""Auto-PGD and the cascade against torchattacks and pyautoattack: as strong, and without their known faults."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from audit.config import EnsembleConfig, RobustnessConfig
from audit.errors import MetricError
from audit.robustness.attacks.apgd import apgd_attack, apgd_targeted_attack
from audit.robustness.attacks.registry import stages_of
from audit.robustness.ensemble import run_cascade

SMALL = EnsembleConfig(apgd_steps=5, fab_steps=5, square_queries=10)


def network(classes: int = 10, seed: int = 0) -> nn.Module:
    """A random network, its weights large enough that its decision surface is far from a plane."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * 16, 32),
            nn.ReLU(),
            nn.Linear(32, classes),
        )
    for parameter in layers.parameters():
        parameter.data *= 2
    return layers.eval()


def case(n: int, classes: int = 10, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor]:
    model = network(classes, seed)
    images = torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model, images, model(images).argmax(dim=1)


def fooled(model: nn.Module, images: Tensor, labels: Tensor) -> int:
    with torch.no_grad():
        return int((model(images).argmax(dim=1) != labels).sum())


def ours(model: nn.Module, images: Tensor, labels: Tensor, loss: str, **within: object) -> int:
    arguments = {**within, "generator": torch.Generator().manual_seed(0)}
    if loss == "targeted":
        out = apgd_targeted_attack(model, images, labels, target_classes=3, **arguments)
    else:
        out = apgd_attack(model, images, labels, loss=loss, **arguments)
    return fooled(model, out, labels)


CASES = [(loss, norm, eps) for loss in ("ce", "dlr", "targeted") for norm, eps in (("Linf", 0.03), ("L2", 0.15))]


@pytest.mark.parametrize(("loss", "norm", "eps"), CASES)
def test_fools_as_many_as_pyautoattack(loss: str, norm: str, eps: float) -> None:
    peer = pytest.importorskip("pyautoattack.autopgd_base", reason="pyautoattack is a peer for tests only")
    model, images, labels = case(100)
    arguments = {"eps": eps, "norm": norm, "n_iter": 30, "seed": 0, "device": "cpu", "logger": logging.getLogger()}
    with torch.random.fork_rng(devices=[]):
        if loss == "targeted":
            attack = peer.APGDAttack_targeted(model, n_target_classes=3, **arguments)
        else:
            attack = peer.APGDAttack(model, loss=loss, **arguments)
        theirs = fooled(model, attack.perturb(images, labels), labels)
    assert 10 < theirs < 90
    # Random starts differ: one image in a hundred may.
    assert ours(model, images, labels, loss, eps=eps, norm=norm, steps=30) >= theirs - 1


@pytest.mark.parametrize(("loss", "norm", "eps"), CASES)
def test_fools_as_many_as_torchattacks(loss: str, norm: str, eps: float) -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is a peer for tests only")
    model, images, labels = case(60, seed=1)
    with torch.random.fork_rng(devices=[]):
        if loss == "targeted":
            attack = torchattacks.APGDT(model, eps=eps, norm=norm, steps=20, n_classes=4)
        else:
            attack = torchattacks.APGD(model, eps=eps, norm=norm, steps=20, loss=loss)
        theirs = fooled(model, attack(images, labels), labels)
    assert ours(model, images, labels, loss, eps=eps, norm=norm, steps=20) >= theirs - 1


def cascade(model: nn.Module, images: Tensor, labels: Tensor, eps: float, config: EnsembleConfig = SMALL) -> int:
    """Return how many images stand."""
    attacks = stages_of(RobustnessConfig(ensemble=config))
    found = run_cascade(model, images, labels, eps=eps, norm="Linf", attacks=attacks, seed_stage="conformance", seed=0)
    assert fooled(model, found.images, labels) == len(images) - int(found.standing.sum())
    return int(found.standing.sum())


def test_cascade_leaves_no_more_standing_than_pyautoattack() -> None:
    pyautoattack = pytest.importorskip("pyautoattack.autoattack", reason="pyautoattack is a peer for tests only")
    model, images, labels = case(24, seed=2)
    with torch.random.fork_rng(devices=[]):
        peer = pyautoattack.AutoAttack(model, eps=0.02, norm="Linf", seed=0)
        peer.apgd.n_iter = peer.apgd_targeted.n_iter = peer.fab.n_iter = 10
        peer.square.n_queries = 100
        found, _ = peer.run_standard_evaluation(images, labels)
    theirs = len(images) - fooled(model, found, labels)
    config = EnsembleConfig(apgd_steps=10, fab_steps=10, square_queries=100)
    assert 0 < theirs < 24
    assert cascade(model, images, labels, 0.02, config) <= theirs


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_break_torchattacks_and_not_us(classes: int) -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is a peer for tests only")
    model, images, labels = case(6, classes)
    with torch.random.fork_rng(devices=[]), pytest.raises(IndexError):
        torchattacks.AutoAttack(model, eps=1e-4, n_classes=classes, seed=0)(images, labels)
    assert cascade(model, images, labels, 1e-4) == 6
    assert cascade(model, images, labels, 0.5) == 0


@pytest.mark.parametrize("classes", [2, 3, 4, 9])
def test_few_classes_break_pyautoattack_and_not_us(classes: int) -> None:
    pyautoattack = pytest.importorskip("pyautoattack.autoattack", reason="pyautoattack is a peer for tests only")
    model, images, labels = case(6, classes)
    peer = pyautoattack.AutoAttack(model, eps=1e-4, seed=0)
    peer.apgd.n_iter = peer.apgd_targeted.n_iter = peer.fab.n_iter = 3
    with torch.random.fork_rng(devices=[]), pytest.raises(IndexError):
        peer.run_standard_evaluation(images, labels)
    assert cascade(model, images, labels, 1e-4) == 6
    assert cascade(model, images, labels, 0.5) == 0


def test_the_ensemble_of_torchattacks_takes_10_steps_and_ours_100() -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is a peer for tests only")
    model, images, labels = case(2)
    peer = torchattacks.AutoAttack(model, eps=1e-4)
    assert [attack.steps for attack in peer._autoattack.attacks[:3]] == [10, 10, 10]
    assert (EnsembleConfig().apgd_steps, EnsembleConfig().fab_steps) == (100, 100)
    rows: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    cascade(model, images, labels, 1e-4, EnsembleConfig(stages=("apgd-ce",)))
    # The pass before the attack and the attack's own, the start and 100 steps, the confirmation, and the one above.
    assert rows == [2] * (1 + 1 + 101 + 1 + 1)


def test_pyautoattack_cannot_go_on_with_its_own_state(tmp_path: Path) -> None:
    pyautoattack = pytest.importorskip("pyautoattack.autoattack", reason="pyautoattack is a peer for tests only")
    model, images, labels = case(2)

    def peer() -> None:
        attack = pyautoattack.AutoAttack(model, eps=0.5, seed=0)
        attack.run_standard_evaluation(images, labels, state_path=tmp_path / "state.json")

    with torch.random.fork_rng(devices=[]):
        peer()
        with pytest.raises(ValueError, match="different set of attacks"):
            peer()


def test_peers_reseed_the_global_rng_and_ours_leaves_it_alone() -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is a peer for tests only")
    peer = pytest.importorskip("pyautoattack.autopgd_base", reason="pyautoattack is a peer for tests only")
    model, images, labels = case(4)
    attacks = {
        "torchattacks": lambda: torchattacks.APGD(model, eps=1e-3, steps=1, seed=0)(images, labels),
        "pyautoattack": lambda: peer.APGDAttack(model, eps=1e-3, n_iter=1, seed=0).perturb(images, labels),
        "ours": lambda: cascade(model, images, labels, 1e-3),
    }
    reseeded = {}
    for name, attack in attacks.items():
        states = []
        for start in (1, 2):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(start)
                before = torch.get_rng_state()
                attack()
                states.append((before, torch.get_rng_state()))
        # Two different states before, one and the same after: whatever else draws from it repeats itself.
        reseeded[name] = torch.equal(states[0][1], states[1][1])
        if name == "ours":
            assert all(torch.equal(before, after) for before, after in states)
    assert reseeded == {"torchattacks": True, "pyautoattack": True, "ours": False}


def test_torchattacks_thaws_a_frozen_batch_norm_and_ours_leaves_it_frozen() -> None:
    torchattacks = pytest.importorskip("torchattacks", reason="torchattacks is a peer for tests only")
    model = nn.Sequential(nn.BatchNorm2d(1), *network())
    model.train()
    model[0].eval()
    images, labels = torch.rand(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    with torch.random.fork_rng(devices=[]):
        torchattacks.PGD(model, eps=0.01, steps=1)(images, labels)
    assert model[0].training
    model[0].eval()
    cascade(model, images, labels, 1e-3)
    assert model.training
    assert not model[0].training


def test_pyautoattack_attacks_normalised_images_without_a_word_and_ours_refuses_them() -> None:
    peer = pytest.importorskip("pyautoattack.autopgd_base", reason="pyautoattack is a peer for tests only")
    model, images, _ = case(16)
    normalised = (images - 0.5) / 0.25
    labels = model(normalised).argmax(dim=1)
    with torch.random.fork_rng(devices=[]):
        out = peer.APGDAttack(model, eps=0.01, n_iter=3, seed=0).perturb(normalised, labels)
    moved = (out - normalised).abs().amax()
    assert moved > 0.5, "clamping to [0, 1] takes the image far out of the ball"
    with pytest.raises(MetricError, match=r"\[0, 1\]"):
        cascade(model, normalised, labels, 0.01)
