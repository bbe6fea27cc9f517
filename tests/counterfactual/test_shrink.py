"""The second phase against the known answer: for linear networks the smallest change is a linear program."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import Tensor, nn

from audit.counterfactual import shrink as shrinking
from audit.counterfactual.batches import Batch
from audit.counterfactual.blend import blended
from audit.counterfactual.iterates import Iterates
from audit.counterfactual.shrink import shrink
from audit.generator.held import Held

LAYERS, WIDTH, SIDE = 3, 4, 6


class Linear(nn.Module):
    """Draws a grey image that is linear in its codes, with an addition to the matrix for every image."""

    def __init__(self, rng: torch.Generator) -> None:
        super().__init__()
        matrix = torch.randn(SIDE * SIDE, LAYERS * WIDTH, generator=rng)
        # Each code touches a patch, more or less strongly: a change can be sparse.
        self.matrix = 0.01 * matrix * (torch.rand(matrix.shape, generator=rng) < 0.3)

    def images(self, ws: Tensor, deltas: dict[str, Tensor]) -> Tensor:
        matrix = self.matrix + deltas["matrix"]
        return 0.5 + (matrix @ ws.flatten(1)[..., None]).view(-1, 1, SIDE, SIDE)


class Answer(nn.Module):
    """Log-odds of class 1 that are linear in the pixels; class 2 stays far behind."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, images: Tensor) -> Tensor:
        odds = (images - 0.5).flatten(1) @ self.weight - 2
        return torch.stack([torch.zeros_like(odds), odds, odds.new_full(odds.shape, -30.0)], 1)


def problem(seed: int, n: int) -> tuple[Linear, Answer, Batch, Tensor]:
    """Edits from class 0 to class 1, and codes that are far past their goals."""
    rng = torch.Generator().manual_seed(seed)
    generator = Linear(rng)
    classifier = Answer(20 * torch.randn(SIDE * SIDE, generator=rng))
    pivots = 0.1 * torch.randn(n, LAYERS, WIDTH, generator=rng)
    deltas = {"matrix": 0.001 * torch.randn(n, SIDE * SIDE, LAYERS * WIDTH, generator=rng)}
    inversions = generator.images(pivots, deltas)
    goals = 3 * torch.rand(n, generator=rng)
    sources, targets = torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.long)
    edits = Batch(inversions, inversions, pivots, Held(deltas), sources, targets, goals)
    slope = ((generator.matrix + deltas["matrix"]).mT @ classifier.weight).view(n, LAYERS, WIDTH)
    away = torch.randn(pivots.shape, generator=rng)
    uphill = away * (slope * away).flatten(1).sum(1).sign().view(-1, 1, 1)
    gain = (slope * uphill).flatten(1).sum(1)
    return generator, classifier, edits, pivots + (20 / gain).view(-1, 1, 1) * uphill


def shrunk(
    generator: Linear,
    classifier: Answer,
    edits: Batch,
    start: Tensor,
    most: int,
    on_step: Callable[[int], None] = lambda images: None,
    *,
    local: bool = False,
) -> tuple[Iterates, Tensor]:
    """Make the edits with the codes `start` smaller; return all iterates, these the first, and which converged."""
    iterates = edits.iterates()
    with torch.no_grad():
        images = generator.images(start, edits.deltas)
        iterates.observe(images, start, classifier(images))
    return iterates, shrink(generator, classifier, edits, iterates, most, on_step, local=local)


def change_of(images: Tensor, edits: Batch) -> Tensor:
    return (images - edits.inversions).abs().flatten(1).mean(1)


def smallest(generator: Linear, classifier: Answer, edits: Batch) -> Tensor:
    """The smallest mean absolute change of each image that meets its goal: min sum(t), -t <= A d <= t, s A d >= g."""
    found = []
    with torch.no_grad():
        odds = classifier(edits.inversions)[:, 1]
    for i, addition in enumerate(edits.deltas["matrix"]):
        a = (generator.matrix + addition).double().numpy()
        pixels, codes = a.shape
        rising = np.concatenate([-(classifier.weight.double().numpy() @ a), np.zeros(pixels)])
        bounds = np.block([[a, -np.eye(pixels)], [-a, -np.eye(pixels)]])
        solution = linprog(
            np.concatenate([np.zeros(codes), np.ones(pixels)]),
            A_ub=np.vstack([bounds, rising]),
            b_ub=np.concatenate([np.zeros(2 * pixels), [float(odds[i] - edits.goals[i])]]),
            bounds=[(None, None)] * codes + [(0, None)] * pixels,
        )
        assert solution.success
        found.append(solution.fun / pixels)
    return torch.tensor(found)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_no_change_is_smaller_than_the_smallest_and_all_are_valid(seed: int) -> None:
    generator, classifier, edits, start = problem(seed, 3)
    found, _ = shrunk(generator, classifier, edits, start, 400)
    assert found.reached.all()
    assert (classifier(found.images)[:, 1] >= edits.goals - 1e-5).all()
    assert (change_of(found.images, edits) >= smallest(generator, classifier, edits) * (1 - 1e-4)).all()


def test_the_smallest_change_of_linear_networks_is_found() -> None:
    """Within a fiftieth in the mean, where there are enough steps."""
    ratios = []
    for seed in range(5):
        generator, classifier, edits, start = problem(seed, 8)
        found, converged = shrunk(generator, classifier, edits, start, 400)
        assert converged.any()
        ratios.append(change_of(found.images, edits) / smallest(generator, classifier, edits))
    ratio = torch.cat(ratios)
    assert ratio.median() <= 1.01
    assert ratio.mean() <= 1.02


def test_what_is_returned_belongs_together() -> None:
    generator, classifier, edits, start = problem(1, 5)
    found, _ = shrunk(generator, classifier, edits, start, 40)
    torch.testing.assert_close(generator.images(found.latents, edits.deltas), found.images)
    rows = torch.arange(5)
    assert found.trace.shape == (5, 43)  # the start, 41 iterates, and the last one pulled back
    torch.testing.assert_close(found.trace[rows, found.step], found.confidence)
    torch.testing.assert_close(classifier(found.images).softmax(1)[:, 1], found.confidence)
    assert (found.step <= found.last).all()
    assert torch.equal(found.flip_step, torch.zeros(5, dtype=torch.long))
    assert (found.trace[:, -1] == found.trace[rows, found.last]).all()


def test_within_its_mask_an_edit_meets_its_goal_and_outside_nothing_changes() -> None:
    generator, classifier, edits, start = problem(9, 6)
    generator.matrix /= 3  # so that some changes are seen, and others are not
    edits = replace(edits, inversions=generator.images(edits.pivots, edits.deltas))
    whole, masked = (shrunk(generator, classifier, edits, 3 * start, 300, local=local)[0] for local in (False, True))
    assert whole.reached.all()
    assert masked.reached.all()
    drawn = generator.images(masked.latents, edits.deltas)
    torch.testing.assert_close(blended(edits.inversions, drawn, masked.masks), masked.images)
    outside = masked.masks == 0
    assert outside.any()
    assert torch.equal(masked.images[outside], edits.inversions[outside])
    assert (masked.change <= whole.change * 1.01).all()
    assert masked.change.mean() < whole.change.mean()


def test_converged_images_leave_the_batch() -> None:
    generator, classifier, edits, start = problem(2, 6)
    steps: list[int] = []
    together, converged = shrunk(generator, classifier, edits, start, 600, steps.append)
    assert len(together.last.unique()) > 1
    assert (converged == (together.last < 602)).all()
    assert steps[400] == 6 > steps[-1]
    assert sum(steps) == int((together.last - 2 + converged).sum())  # without the start and the one pulled back


def test_the_end_lies_on_the_operating_point() -> None:
    """What is left between the smallest valid iterate and the goal is taken back on the line to the pivot."""
    generator, classifier, edits, start = problem(2, 6)
    found, _ = shrunk(generator, classifier, edits, start, 400)
    beyond = classifier(found.images)[:, 1] - edits.goals
    assert (beyond >= -1e-5).all()
    assert (beyond <= 0.02).all()
    assert (found.step == found.last).any()


class Jump(Answer):
    """Log-odds that jump from -9 to 9 within a twentieth of the way."""

    def forward(self, images: Tensor) -> Tensor:
        odds = 9 * (4 * ((images - 0.5).flatten(1) @ self.weight - 2)).tanh()
        return torch.stack([torch.zeros_like(odds), odds, odds.new_full(odds.shape, -30.0)], 1)


def test_edits_thrown_beyond_their_goals_descend_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, classifier, edits, start = problem(8, 8)
    jumping, most = Jump(classifier.weight), 30
    with monkeypatch.context() as patched:
        patched.setattr(shrinking, "BEYOND", float("inf"))
        once, _ = shrunk(generator, jumping, edits, start, most)
    steps: list[int] = []
    found, _ = shrunk(generator, jumping, edits, start, most, steps.append)
    thrown = jumping(once.images)[:, 1] > edits.goals + shrinking.BEYOND
    assert thrown.any()
    assert not thrown.all()
    assert sum(steps) == most * (8 + int(thrown.sum()))
    assert torch.equal(found.last > once.last, thrown)
    assert torch.equal(found.images[~thrown], once.images[~thrown])
    assert (found.change <= once.change).all()
    assert (found.change / once.change)[thrown].median() < 0.9
    assert found.reached.all()


def test_a_batch_is_its_images_one_at_a_time() -> None:
    # Few steps: a batch of one rounds differently, and a descent on absolute values amplifies rounding.
    generator, classifier, edits, start = problem(2, 6)
    together, _ = shrunk(generator, classifier, edits, start, 12)
    for row in range(6):
        one = torch.tensor([row])
        alone, _ = shrunk(generator, classifier, edits.select(one), start[one], 12)
        torch.testing.assert_close(alone.images[0], together.images[row], atol=1e-3, rtol=0)


def test_repeating_gives_the_same_bits() -> None:
    generator, classifier, edits, start = problem(3, 4)
    first, again = (shrunk(generator, classifier, edits, start, 50)[0] for _ in range(2))
    for name in ("images", "latents", "confidence", "step", "last", "trace"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name


def test_more_steps_never_give_a_larger_change_and_few_have_not_converged() -> None:
    generator, classifier, edits, start = problem(4, 4)
    changes = []
    for most in (0, 5, 40, 300):
        found, converged = shrunk(generator, classifier, edits, start, most)
        changes.append(change_of(found.images, edits).mean())
        assert converged.any() == (most == 300)
    assert changes == sorted(changes, reverse=True)


def test_a_start_short_of_its_goal_is_pushed_over_it() -> None:
    generator, classifier, edits, start = problem(5, 4)
    short = edits.pivots.lerp(start, 0.02)
    assert (classifier(generator.images(short, edits.deltas)).argmax(1) == 0).all()
    found, _ = shrunk(generator, classifier, edits, short, 300)
    assert found.reached.all()
    assert (found.flip_step > 0).all()
    assert (found.step >= found.flip_step).all()


def test_where_no_edit_is_valid_the_start_comes_back() -> None:
    generator, _, edits, start = problem(6, 3)
    found, converged = shrunk(generator, Answer(torch.zeros(SIDE * SIDE)), edits, start, 20)
    assert not found.reached.any()
    assert not converged.any()
    torch.testing.assert_close(found.latents, start)
    assert (found.step == 0).all()


@pytest.mark.parametrize("factor", [0.125, 8.0])
def test_the_unit_of_the_codes_does_not_matter(factor: float) -> None:
    """Codes of eight times the spread, drawn an eighth as strongly, take the same steps to the same images."""
    generator, classifier, edits, start = problem(7, 3)
    first, _ = shrunk(generator, classifier, edits, start, 12)
    generator.matrix /= factor
    deltas = Held({"matrix": edits.deltas["matrix"] / factor})
    other = replace(edits, pivots=edits.pivots * factor, deltas=deltas)
    again, _ = shrunk(generator, classifier, other, start * factor, 12)
    torch.testing.assert_close(again.images, first.images, atol=1e-4, rtol=0)
