"""The latent optimisation on a real (tiny) generator and classifier."""

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from audit.config import PRESETS, CounterfactualConfig
from audit.counterfactual import batches
from audit.counterfactual.balance import OVERSHOOT
from audit.counterfactual.blend import blended, with_blend
from audit.counterfactual.descent import clip_per_image
from audit.counterfactual.methods import choose_method
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, InvertedQueries, SearchNetworks
from audit.counterfactual.spruce import Objective
from audit.embeddings.lpips import from_torch
from audit.errors import ClassifierError
from audit.generator.stylegan2.networks import Generator
from audit.metrics.perceptual import perceptual_distance
from audit.runtime.memory import limited
from audit.runtime.progress import Advance


class Edges:
    """A feature network without weights: horizontal and vertical differences."""

    name, weights_sha256 = "edges", "0" * 64

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)

    def maps(self, images: Tensor) -> list[Tensor]:
        return [torch.cat([images[..., 1:, 1:] - images[..., :-1, 1:], images[..., 1:, 1:] - images[..., 1:, :-1]], 1)]


def silent(amount: float = 1) -> None:
    pass


def run(
    world, rows: slice = slice(None), perceptual: Edges | None = None, advance: Advance = silent, **changes: object
) -> Counterfactuals:
    inversion = dataclasses.replace(
        world.inversion,
        pivots=world.inversion.pivots[rows],
        deltas={k: v[rows] for k, v in world.inversion.deltas.items()},
        images=world.inversion.images[rows],
    )
    subject = CalibratedClassifier(
        changes.pop("classifier", world.classifier),
        changes.pop("calibration", world.calibration),
        changes.pop("points", world.points),
    )
    queries = InvertedQueries(world.queries[rows], world.sources[rows], inversion)
    method = choose_method(world.config.model_copy(update=changes), 0)
    return method.explain(subject, SearchNetworks(world.generator, perceptual), queries, world.targets[rows], advance)


@pytest.fixture(scope="module")
def found(world) -> Counterfactuals:
    return run(world)


def test_every_image_reaches_the_operating_point(world, found: Counterfactuals) -> None:
    assert found.flipped.all()
    assert found.reached.all()
    with torch.no_grad():
        drawn = world.generator.images(found.latents, deltas=world.inversion.deltas)
        images = blended(world.inversion.images, drawn, found.masks)
        probabilities = world.classifier(found.images).softmax(1)
    torch.testing.assert_close(images, found.images, atol=1e-5, rtol=0)
    assert torch.equal(probabilities.argmax(1), world.targets)
    torch.testing.assert_close(probabilities.gather(1, world.targets[:, None])[:, 0], found.confidence)
    assert (found.confidence >= world.points[world.targets] - 1e-6).all()
    assert (found.images >= 0).all()
    assert (found.images <= 1).all()


def test_trace_and_semifactual_tell_the_way(world, found: Counterfactuals) -> None:
    rows = torch.arange(len(found.step))
    assert found.trace.shape == (len(rows), int(found.steps.max()) + 1)
    torch.testing.assert_close(found.trace[rows, found.step], found.confidence)
    with torch.no_grad():
        start = world.classifier(world.inversion.images).softmax(1)
        semifactual = world.classifier(found.semifactuals)
    torch.testing.assert_close(found.trace[:, 0], start[rows, world.targets], atol=1e-5, rtol=1e-4)
    assert torch.equal(semifactual.argmax(1), world.sources)
    assert (found.flip_step > 0).all()
    assert (found.trace[rows, found.flip_step] > 0.5).all()
    for row, flip in enumerate(found.flip_step.tolist()):
        assert (found.trace[row, :flip] <= 0.5).all()


def test_a_batch_is_its_images_one_at_a_time(world) -> None:
    # Few steps: a convolution rounds a batch of one differently, and an optimisation with L1 terms amplifies rounding.
    together = run(world, steps=20, shrink_steps=5)
    for row in (0, 2, 5):
        alone = run(world, slice(row, row + 1), steps=20, shrink_steps=5)
        torch.testing.assert_close(alone.trace[0], together.trace[row], atol=1e-4, rtol=0)
        torch.testing.assert_close(alone.images[0], together.images[row], atol=1e-4, rtol=0)


def test_repeating_gives_the_same_bits(world, found: Counterfactuals) -> None:
    again = run(world)
    for name, value in vars(found).items():
        assert torch.equal(value, getattr(again, name)), name


def test_how_far_the_features_are_carried_is_told(world) -> None:
    plain, carried = (run(world, balance=balance, steps=20, shrink=False) for balance in ("fixed", "adaptive"))
    assert (plain.push, plain.reach, plain.carried_target_flips) == (None, None, None)
    torch.testing.assert_close(carried.reach, carried.push.clamp_min(1) ** OVERSHOOT)
    assert (carried.reach > 1).any()
    assert torch.equal(carried.feature_target_flips, plain.feature_target_flips)
    assert (carried.carried_target_flips >= carried.feature_target_flips).all()
    both = run(world)
    assert (both.reach >= 1).all()  # of the first phase: the second one carries no features


def test_the_last_or_the_sparsest_flip_is_taken_where_that_is_asked_for(world) -> None:
    last, sparsest, sure = (
        run(world, shrink=False, choose=choose, steps=40) for choose in ("last", "sparsest", "reached")
    )
    assert (last.step == 40).all()
    assert torch.equal(last.confidence, last.trace[:, -1])
    assert sparsest.flipped.all()
    assert (sparsest.confidence <= sure.confidence + 1e-6).all()
    assert (sparsest.step >= sparsest.flip_step).all()
    assert torch.equal(sparsest.reached, sparsest.confidence >= world.points[world.targets])


def test_without_weight_the_perceptual_network_is_not_run(world) -> None:
    class Unused(Edges):
        def maps(self, images: Tensor) -> list[Tensor]:
            raise AssertionError("it is run")

    run(world, slice(0, 1), Unused(), steps=2, shrink_steps=1)
    run(world, slice(0, 1), Unused(), steps=2, shrink=False, perceptual_weight=0.0)
    with pytest.raises(AssertionError, match="it is run"):
        run(world, slice(0, 1), Unused(), steps=2, shrink=False)


@pytest.mark.parametrize(("factor", "tolerance", "shrink"), [(16.0, 1e-6, True), (10.0, 1e-3, False)])
def test_rescaling_the_features_changes_nothing(
    world, images: Tensor, factor: float, tolerance: float, shrink: bool
) -> None:
    """A power of two rescales float32 exactly; ten rounds, and steps carry that on."""
    network = copy.deepcopy(world.network)
    scaled = nn.Sequential(*network[:-1], Times(factor), network[-1]).eval()
    with torch.no_grad():
        scaled[-1].weight /= factor
    classifier = world.wrap(scaled)
    calibration, points = world.calibrate(classifier, images, world.config)
    settings = {"shrink": True} if shrink else {"shrink": False, "steps": 40}
    found = run(world, **settings)
    other = run(world, classifier=classifier, calibration=calibration, points=points, **settings)
    torch.testing.assert_close(other.images, found.images, atol=tolerance, rtol=0)
    torch.testing.assert_close(other.trace, found.trace, atol=tolerance, rtol=0)
    assert torch.equal(other.reached, found.reached)


class Times(nn.Module):
    """Multiply by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_networks_are_left_as_they_came(world) -> None:
    network = world.network
    network.train()
    network[0].eval()
    network[0].weight.requires_grad_(False)
    world.generator.train()
    state = torch.get_rng_state()
    try:
        run(world, slice(0, 2), steps=2)
        assert network.training
        assert network[1].training
        assert not network[0].training
        assert not network[0].weight.requires_grad
        assert network[-1].weight.requires_grad
        assert world.generator.training
        assert all(p.requires_grad and p.grad is None for p in world.generator.parameters())
        assert all(p.grad is None for p in network.parameters())
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        network[0].weight.requires_grad_(True)
        network.eval()
        world.generator.eval()


def test_the_balance_is_what_makes_models_comparable(world, found: Counterfactuals) -> None:
    stiff, eased = (run(world, balance=b, image_weight=100.0, shrink=False) for b in ("fixed", "adaptive"))
    assert not stiff.reached.any()
    assert eased.reached.all()


def test_sparsity_is_not_worse_than_stopping_at_the_first_convincing_iterate(world, found: Counterfactuals) -> None:
    change = (found.images - world.inversion.images).abs().flatten(1).mean(1)
    free = run(world, balance="fixed", image_weight=0.0, latent_weight=0.0)
    loose = (free.images - world.inversion.images).abs().flatten(1).mean(1)
    assert change.mean() <= loose.mean()


def test_the_perceptual_term_takes_part(world) -> None:
    plain, weighted = (run(world, slice(0, 2), Edges(), steps=5, perceptual_weight=w) for w in (0.0, 50.0))
    assert not torch.equal(plain.latents, weighted.latents)
    torch.testing.assert_close(plain.trace, run(world, slice(0, 2), steps=5).trace, atol=1e-5, rtol=0)


def test_the_second_phase_makes_the_edits_smaller_and_tells_both(world, found: Counterfactuals) -> None:
    def changes(one: Counterfactuals) -> Tensor:
        return (one.images - world.inversion.images).abs().flatten(1).mean(1)

    alone = run(world, shrink=False)
    assert (alone.converged, alone.aligned_l1, alone.aligned_steps) == (None, None, None)
    assert alone.trace.shape == (6, world.config.steps + 1)
    assert (alone.steps == world.config.steps).all()
    assert (changes(found) <= found.aligned_l1).all()
    assert changes(found).mean() < changes(alone).mean() / 1.5
    assert (found.aligned_confidence >= world.points[world.targets] - 1e-6).all()
    # Alignment ends where the operating point is reached, and the other phase begins anew from there.
    rows = torch.arange(6)
    assert (found.aligned_steps < world.config.steps).all()
    torch.testing.assert_close(found.trace[rows, found.aligned_steps], found.aligned_confidence)
    assert torch.equal(found.semifactuals, alone.semifactuals)
    assert (found.step > found.aligned_steps).all()
    assert (found.step <= found.steps).all()
    assert (found.trace[:, -1] == found.trace[rows, found.steps]).all()


def test_what_is_not_seen_of_an_edit_is_left_out(world, found: Counterfactuals) -> None:
    whole = run(world, shrink_local=False)
    assert whole.masks is None
    assert found.masks.shape == (6, 1, *world.queries.shape[2:])
    assert (found.masks >= 0).all()
    assert (found.masks <= 1).all()
    outside = found.masks.expand_as(found.images) == 0
    assert outside.any()
    assert torch.equal(found.images[outside], world.inversion.images[outside])
    change, before = ((one.images - world.inversion.images).abs().mean() for one in (found, whole))
    assert change < 1.02 * before  # these edits are seen nearly everywhere


def test_a_way_back_begins_at_the_blend(world, found: Counterfactuals) -> None:
    """From code, weights and blend of the counterfactuals; without the blend it would begin at other images."""
    deltas = with_blend(world.inversion.deltas, world.inversion.images, found.masks)
    start = dataclasses.replace(world.inversion, pivots=found.latents, deltas=deltas, images=found.images)
    there = dataclasses.replace(
        world, inversion=start, queries=found.images, sources=world.targets, targets=world.sources
    )
    with torch.no_grad():
        expected = world.classifier(found.images).softmax(1).gather(1, world.sources[:, None])[:, 0]
    for changes in ({}, {"shrink": False, "steps": 3}):
        back = run(there, **changes)
        torch.testing.assert_close(back.trace[:, 0], expected, atol=1e-5, rtol=0)
    back = run(there)
    assert back.reached.all()
    away, left = ((one - world.inversion.images).abs().flatten(1).mean(1) for one in (found.images, back.images))
    assert left.mean() < away.mean()


def test_an_edit_cut_short_has_not_converged(world) -> None:
    brief = run(world, slice(0, 2), shrink_steps=3)
    assert brief.reached.all()
    assert not brief.converged.any()
    # The edit pulled back, three steps, and once more pulled back at the end.
    assert torch.equal(brief.steps, brief.aligned_steps + 1 + 3 + 1)


def test_the_bar_of_progress_ends_at_the_number_of_images(world) -> None:
    for changes in ({}, {"shrink": False, "steps": 5}, {"shrink_steps": 2}, {"steps": 2}):
        told: list[float] = []
        run(world, advance=told.append, **changes)
        assert sum(told) == pytest.approx(6)


def test_raw_loss_is_the_literal_sum() -> None:
    config = CounterfactualConfig(loss="raw", shrink=False)
    x, aim = torch.randn(2, 7), torch.randn(2, 7)
    pivots, queries = torch.randn(2, 14, 512), torch.rand(2, 3, 256, 256)
    latents, images = torch.randn(2, 14, 512), torch.rand(2, 3, 256, 256)
    objective = Objective(config, torch.full((7,), 5.0), pivots, queries)
    torch.testing.assert_close(objective.features(x, aim), ((x - aim) ** 2).sum(1))
    expected = 1e-4 * (latents - pivots).abs().sum((1, 2)) + 1e-6 * (images - queries).abs().sum((1, 2, 3))
    torch.testing.assert_close(objective.sparsity(images, latents, None), expected)
    with_distance = objective.sparsity(images, latents, torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(with_distance, expected + 0.1 * torch.tensor([2.0, 3.0]))


def test_raw_weights_carry_over_to_other_sizes_and_standardised_ones_are_of_the_mean() -> None:
    """At another size the sums stand for those of 3x256x256 values and 14x512 codes; the mean needs no reference."""
    pivots, queries = torch.zeros(1, 10, 64), torch.full((1, 1, 64, 64), 0.5)
    latents, images = pivots + 0.3, queries + 0.1
    raw, standardised = (
        Objective(CounterfactualConfig(loss=loss), torch.ones(7), pivots, queries).sparsity(images, latents, None)
        for loss in ("raw", "standardised")
    )
    torch.testing.assert_close(raw, torch.tensor([1e-4 * 14 * 512 * 0.3 + 1e-6 * 3 * 256 * 256 * 0.1]))
    torch.testing.assert_close(standardised, torch.tensor([0.9216 * 0.3 + 30 * 0.1]))


def test_the_preset_of_the_thesis_runs_on_lpips(world) -> None:
    """LPIPS of VGG with weights drawn at random: its own are not on every machine."""
    rng = torch.Generator().manual_seed(0)
    backbone = {
        f"features.{name}": torch.randn(value.shape, generator=rng) / value[0].numel() ** 0.5
        for name, value in make_layers(cfgs["D"]).state_dict().items()
    }
    heads = {f"lin{i}.model.1.weight": torch.rand(c, generator=rng) for i, c in enumerate((64, 128, 256, 512, 512))}
    network = from_torch(backbone, heads, "vgg", "0" * 64)
    queries = world.queries.clone().requires_grad_()
    torch.testing.assert_close(
        perceptual_distance(network, queries, world.inversion.images),
        network.distance(queries, world.inversion.images),
    )
    preset = PRESETS["spruce-thesis"]["counterfactual"]
    literal = run(world, perceptual=network, steps=20, **preset)
    assert literal.flipped.any()
    assert (literal.steps == 20).all()
    assert literal.push is literal.reach is literal.converged is None
    without = run(world, steps=20, **preset | {"perceptual_weight": 0.0})
    assert not torch.equal(literal.images, without.images)


def test_gradients_are_clipped_image_by_image() -> None:
    gradient = torch.stack([torch.full((2, 3), 100.0), torch.full((2, 3), 1e-3), torch.zeros(2, 3)])
    clipped = clip_per_image(gradient, 1.0)
    assert clipped[0].norm() == pytest.approx(1.0)
    assert torch.equal(clipped[1:], gradient[1:])


def test_progress_adds_up_and_a_class_without_operating_point_is_refused(world) -> None:
    done: list[float] = []
    run(world, steps=2, advance=done.append)
    assert sum(done) == pytest.approx(len(world.queries))
    with pytest.raises(ClassifierError, match="choose another target class"):
        run(world, points=torch.full((2,), torch.nan))


def test_the_memory_bounds_the_batch_and_not_the_outcome(world, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    whole = batches.Iterates.__init__

    def noted(self: batches.Iterates, inversions: Tensor, *more: Tensor) -> None:
        sizes.append(len(inversions))
        whole(self, inversions, *more)

    monkeypatch.setattr(batches.Iterates, "__init__", noted)
    free = run(world, steps=10, shrink_steps=5, batch_size=6)
    with limited("1MB"):
        tight = run(world, steps=10, shrink_steps=5, batch_size=6)
    assert sizes[:2] == [1, 6]
    assert sizes[2] == 1
    assert len(sizes[3:]) > 1
    assert sum(sizes[3:]) == 6
    torch.testing.assert_close(tight.images, free.images, atol=1e-4, rtol=0)


def test_a_batch_that_runs_out_of_memory_begins_anew_in_halves(world, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, done = run(world, steps=6, batch_size=6, shrink_steps=5), [0.0]
    whole = Generator.images

    def images(self: Generator, ws: Tensor, **named: object) -> Tensor:
        if len(ws) > 2 and done[0] > 2:
            raise MemoryError
        return whole(self, ws, **named)

    monkeypatch.setattr(Generator, "images", images)
    found = run(
        world, steps=6, batch_size=6, shrink_steps=5, advance=lambda amount=1: done.__setitem__(0, done[0] + amount)
    )
    torch.testing.assert_close(found.images, expected.images, atol=1e-4, rtol=0)
    assert done[0] == pytest.approx(6)
