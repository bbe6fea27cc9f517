"""The loop learns, selects the best weights, and a killed run resumes to the very same weights."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.errors import ConfigError
from audit.training.classifier.config import OptimiserConfig
from audit.training.shared import loop
from audit.training.shared.loop import Outcome, Task, learning_rate_share, parameter_groups, train, without_gain
from audit.training.shared.precision import in_precision

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
    settings = {"lr": 0.02, "batch_size": 32, "steps": STEPS, "ema": 0.5, "precision": "float32"}
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
        patience=change.get("patience"),
    )


def test_training_learns_and_touches_no_global_rng(tmp_path: Path) -> None:
    network, rng = model(), torch.get_rng_state()
    before = accuracy(network)
    outcome = run(network, tmp_path, steps=60, ema=None)
    assert accuracy(network) == outcome.best_score > max(0.8, before)
    assert torch.equal(torch.get_rng_state(), rng)


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


class Batches:
    """The batches of `batch`, and an end at one step."""

    def __init__(self, last: int | None = None) -> None:
        self.last = last

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        if step == self.last:
            raise Killed
        return batch(step)


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("settings", [{}, {"ema": 0.5}, {"precision": "bfloat16"}, {"precision": "float16"}], ids=str)
def test_a_run_killed_at_any_step_ends_with_the_same_weights_and_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, object]
) -> None:
    # The CPU's float16 is slow and refused to users; here it takes the gradient's scale through the checkpoint.
    monkeypatch.setattr(loop, "check_precision", lambda precision, device: None)
    settings = {"ema": None, "lr": 0.05} | settings
    whole = model()
    (tmp_path / "whole").mkdir()
    expected = run(whole, tmp_path / "whole", **settings)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    for last in range(STEPS):
        folder = tmp_path / str(last)
        folder.mkdir()
        with pytest.raises(Killed):
            run(model(), folder, batch=Batches(last), **settings)
        resumed = model()
        outcome = run(resumed, folder, **settings)
        assert same(resumed, whole), last
        assert replace(outcome, seconds=0) == replace(expected, seconds=0), last


def test_a_run_killed_every_few_steps_and_in_validations_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, last = model(), model()
    (tmp_path / "whole").mkdir()
    expected = run(whole, tmp_path / "whole")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    kills = iter([1, 0, 1, 0, 1, 0])

    def dying(network: nn.Module) -> float:
        if next(kills, 0):
            raise Killed
        return accuracy(network)

    for first in (2, 3, 7, 8):
        with pytest.raises(Killed):
            run(model(), tmp_path, batch=Batches(first), score=dying)
    for _ in range(10):
        last = model()
        try:
            outcome = run(last, tmp_path, score=dying)
        except Killed:
            continue
        break
    assert next(kills, None) is None, "every kill took place"
    assert same(last, whole)
    assert outcome.history == expected.history


def test_patience_ends_a_run_that_gains_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    scores = [0.5, 0.6, 0.6, 0.4, 0.9]
    network = model()
    outcome = run(network, tmp_path, steps=20, score=lambda _: scores.pop(0), patience=2)
    assert (outcome.stopped_at, outcome.reason) == (16, "no gain in 2 validations")
    assert (outcome.best_step, outcome.best_score) == (12, 0.6), "of equal scores the later weights are kept"
    again = model()
    assert run(again, tmp_path, steps=20, patience=2).history == outcome.history, "a stopped run does not go on"
    assert same(again, network)


def test_a_run_killed_before_its_patience_ends_stops_where_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)

    def score(network: nn.Module) -> float:
        return 0.5

    for last in (5, 11):
        with pytest.raises(Killed):
            run(model(), tmp_path, steps=20, score=score, patience=2, batch=Batches(last))
    outcome = run(model(), tmp_path, steps=20, score=score, patience=2)
    assert outcome.stopped_at == 12
    assert outcome.history == [(4, 0.5), (8, 0.5), (12, 0.5)]


def test_a_run_without_patience_does_all_steps(tmp_path: Path) -> None:
    outcome = run(model(), tmp_path, score=lambda _: 0.1)
    assert (outcome.stopped_at, outcome.reason) == (STEPS, "all steps done")


@given(st.lists(st.sampled_from([0.1, 0.2, 0.3, 0.4]), max_size=8))
def test_gain_is_counted_from_the_first_of_the_highest(scores: list[float]) -> None:
    expected = len(scores) - 1 - scores.index(max(scores)) if scores else 0
    assert without_gain(scores) == expected


def test_bfloat16_casts_the_forward_pass_alone(tmp_path: Path) -> None:
    network, seen = model(), []
    network[1].register_forward_hook(lambda module, args, out: seen.append((module.training, out.dtype)))

    def checked(model: nn.Module, images: Tensor, labels: Tensor, noise: torch.Generator, progress: float) -> Tensor:
        logits = model(images)
        assert logits.dtype == torch.float32
        return nn.functional.cross_entropy(logits, labels)

    outcome = train(
        network,
        Task("test", batch, checked, accuracy),
        OptimiserConfig(lr=0.02, steps=60, precision="bfloat16"),
        steps=60,
        select_every=20,
        seed=3,
        checkpoint=tmp_path / "run.pt",
        key="a",
    )
    assert outcome.best_score > 0.8
    assert set(seen) == {(True, torch.bfloat16), (False, torch.float32)}, "validation is in float32"
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_a_cast_does_not_outlive_a_change_of_the_weights() -> None:
    linear = nn.Linear(2, 2)
    cast = in_precision(linear, "bfloat16")
    before = cast(torch.ones(1, 2))
    with torch.no_grad():
        linear.weight += 1
    assert torch.allclose(cast(torch.ones(1, 2)) - before, torch.full((1, 2), 2.0), atol=0.05)


def test_float16_is_for_cuda(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"float16.*CUDA device.*'cpu'.*bfloat16"):
        run(model(), tmp_path, precision="float16")
