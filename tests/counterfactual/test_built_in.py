"""What all built-in methods have in common, each of them run on a tiny real generator and classifier."""

import dataclasses
from collections.abc import Callable

import pytest
import torch

from audit.counterfactual.blend import blended
from audit.counterfactual.methods import METHODS, choose_method
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, SearchNetworks

IN_LATENT_SPACE = ("spruce", "piece", "latent-gradient", "latent-shift", "gradient-free")
"""Methods whose counterfactuals are images of the generator."""

WITHOUT_A_GOAL = ("piece",)
"""Methods that aim at usual features, which may convince less than is asked for."""


@pytest.fixture(scope="module")
def run(world) -> Callable[..., Counterfactuals]:
    kept: dict[tuple[object, ...], Counterfactuals] = {}

    def explained(method: str, again: bool = False, **changes: object) -> Counterfactuals:
        key = (method, again, *changes.items())
        if key not in kept:
            given = {"method": method} | changes
            chosen = choose_method(world.config.model_copy(update=given), 0)
            networks = SearchNetworks(world.generator, None)
            done: list[float] = []
            kept[key] = chosen.explain(world.subject, networks, world.asked, world.targets, lambda n=1: done.append(n))
            assert sum(done) == pytest.approx(len(world.targets))
        return kept[key]

    return explained


@pytest.fixture(params=sorted(METHODS.builtin))
def method(request: pytest.FixtureRequest) -> str:
    return request.param


def test_the_counterfactuals_convince_as_much_as_is_asked_for(world, run, method: str) -> None:
    found = run(method)
    with torch.no_grad():
        probabilities = world.classifier(found.images).softmax(1)
    own = probabilities.gather(1, world.targets[:, None])[:, 0]
    torch.testing.assert_close(own, found.confidence, atol=1e-5, rtol=1e-4)
    assert torch.equal(probabilities.argmax(1) == world.targets, found.flipped)
    assert found.flipped.all()
    assert found.reached.all() or method in WITHOUT_A_GOAL
    assert (own >= world.points[world.targets] - 1e-6)[found.reached].all()
    torch.testing.assert_close(found.trace.gather(1, found.step[:, None])[:, 0], found.confidence)
    with torch.no_grad():
        assert torch.equal(world.classifier(found.semifactuals).argmax(1), world.sources)


def test_it_finds_the_same_again_and_in_batches_of_another_size(run, method: str) -> None:
    # Few steps: convolutions round batches of another size differently, which long searches amplify.
    few = {"steps": 12, "shrink_steps": 5}
    found, again, other = run(method, **few), run(method, again=True, **few), run(method, batch_size=5, **few)
    for name, value in vars(found).items():
        assert value is None or torch.equal(value, getattr(again, name)), name
    torch.testing.assert_close(other.images, found.images, atol=1e-3, rtol=0)


def test_codes_are_given_where_there_are_any(world, run, method: str) -> None:
    found = run(method)
    assert (found.latents is not None) == (method in IN_LATENT_SPACE)
    if found.latents is not None:
        with torch.no_grad():
            drawn = world.generator.images(found.latents, deltas=world.inversion.deltas)
        if found.masks is not None:
            drawn = blended(world.inversion.images, drawn, found.masks)
        torch.testing.assert_close(drawn, found.images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", [name for name in METHODS.builtin if name != "nearest-image"])
def test_what_already_convinces_is_left_as_it_is(world, method: str) -> None:
    """Towards its own class and at an operating point that every image has passed there is nothing to change."""
    points = torch.full_like(world.points, 0.01)
    subject = CalibratedClassifier(world.classifier, world.calibration, points, real=world.real)
    queries = dataclasses.replace(world.asked, labels=1 - world.sources)
    chosen = choose_method(world.config.model_copy(update={"method": method, "steps": 10}), 0)
    found = chosen.explain(
        subject, SearchNetworks(world.generator, None), queries, world.sources, lambda amount=1: None
    )
    assert found.reached.all()
    assert found.flip_step.tolist() == [0] * len(world.sources)
    torch.testing.assert_close(found.images, world.inversion.images, atol=1e-5, rtol=0)
