"""The loop learns, selects the best weights, and a killed run resumes to the very same weights."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from audit.errors import ConfigError
from audit.training import loop
from audit.training.config import OptimiserConfig
from audit.training.loop import Outcome, Task, learning_rate_share, parameter_groups, train

STEPS = 12


class Killed(Exception):
    pass


def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 2))


def batch(step: int) -> tuple[Tensor, Tensor]:
    images = torch.rand(32, 1, 2, 2, generator=torch.Generator().manual_seed(step))
    return images, (images.mean(dim=(1, 2, 3)) > 0.5).long()


def loss(network: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float) -> Tensor:
    noise = 0.01 * torch.randn(images.shape, generator=generator)
    return nn.functional.cross_entropy(network(images + noise), labels)


def accuracy(network: nn.Module) -> float:
    network.eval()
    images, labels = batch(10**6)
    with torch.no_grad():
        return float((network(images).argmax(dim=1) == labels).float().mean())


def run(network: nn.Module, folder: Path, score: Callable[[nn.Module], float] = accuracy, **change: object) -> Outcome:
    settings = {"lr": 0.02, "batch_size": 32, "steps": STEPS, "ema": 0.5}
    settings |= {k: v for k, v in change.items() if k in settings}
    return train(
        network,
        Task("test", change.get("batch", batch), loss, score),
        OptimiserConfig(**settings),
        steps=settings["steps"],
        select_every=4,
        seed=3,
        checkpoint=folder / "run.pt",
        key=str(change.get("key", "a")),
    )


def test_training_learns_and_touches_no_global_rng(tmp_path: Path) -> None:
    network, rng = model(), torch.get_rng_state()
    before = accuracy(network)
    outcome = run(network, tmp_path, steps=60, ema=None)
    assert accuracy(network) == outcome.best_score > max(0.8, before)
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.parametrize("ema", [None, 0.5])
def test_a_killed_run_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ema: float | None
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    whole, parts = model(), model()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    expected = run(whole, tmp_path / "a", ema=ema)

    def dying(step: int) -> tuple[Tensor, Tensor]:
        if step == 7:
            raise Killed
        return batch(step)

    with pytest.raises(Killed):
        run(parts, tmp_path / "b", ema=ema, batch=dying)
    fresh = model()
    outcome = run(fresh, tmp_path / "b", ema=ema)
    assert outcome.history == expected.history
    assert outcome.best_step == expected.best_step
    for key, value in whole.state_dict().items():
        assert torch.equal(fresh.state_dict()[key], value), key


def test_the_best_weights_are_kept(tmp_path: Path) -> None:
    values = iter([0.2, 0.9, 0.1])
    seen: list[Tensor] = []

    def score(network: nn.Module) -> float:
        seen.append(network[1].weight.detach().clone())
        return next(values)

    network = model()
    outcome = run(network, tmp_path, score=score)
    assert (outcome.best_step, outcome.best_score) == (8, 0.9)
    assert torch.equal(network[1].weight, seen[1])


def test_checkpoint_of_another_configuration_is_refused(tmp_path: Path) -> None:
    run(model(), tmp_path)
    with pytest.raises(ConfigError, match="another configuration"):
        run(model(), tmp_path, key="b")


def test_diverging_loss_ends_in_a_sentence(tmp_path: Path) -> None:
    def broken(step: int) -> tuple[Tensor, Tensor]:
        images, labels = batch(step)
        return images * math.nan, labels

    with pytest.raises(ConfigError, match=r"lower optimiser\.lr"):
        run(model(), tmp_path, batch=broken)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    shares = [learning_rate_share(step, 100, 0.1) for step in range(100)]
    assert shares[0] == pytest.approx(0.1)
    assert max(shares) == shares[9] == 1.0
    assert all(b <= a for a, b in itertools.pairwise(shares[9:]))
    assert shares[-1] < 0.001


def test_biases_and_norms_are_not_decayed() -> None:
    decayed, free = parameter_groups(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)), 0.1)
    assert [p.ndim for p in decayed["params"]] == [4]
    assert [p.ndim for p in free["params"]] == [1, 1, 1]
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.1, 0.0)
