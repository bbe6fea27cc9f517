"""Batched pivotal tuning: equal to one image at a time, stops per image, leaves pivots and generator alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from audit.config import InversionConfig
from audit.generator.features import DiscriminatorFeatures
from audit.generator.stylegan2.discriminator import Discriminator
from audit.generator.stylegan2.networks import Generator
from audit.inversion.inverter import Inverter
from audit.inversion.loss import squared_error, targets_of
from audit.inversion.pivotal import editability, locality_codes, tune


def config(**values: object) -> InversionConfig:
    return InversionConfig.model_validate({"tuning_steps": 12, "tuning_lr": 5e-3, "stop_mse": 0.0} | values)


@pytest.fixture
def pivots(generator: Generator) -> Tensor:
    z = torch.randn(4, generator.z_dim, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return generator.mapping(z).contiguous()


def test_tuned_parameters_are_weights_biases_and_the_constant(generator: Generator) -> None:
    names = set(generator.tunable)
    assert {"b4.const", "b4.conv1.weight", "b8.conv0.bias", "b16.torgb.weight", "b16.torgb.bias"} <= names
    assert not any("affine" in name or "noise" in name for name in names)


def psnr(drawn: Tensor, images: Tensor) -> Tensor:
    return -10 * squared_error(drawn, images).log10()


@pytest.mark.parametrize("form", ["full", "low-rank"])
def test_batch_equals_one_at_a_time(
    form: str,
    generator: Generator,
    discriminator: Discriminator,
    pivots: Tensor,
    draw_images: Callable[[int, int], Tensor],
) -> None:
    images, network = draw_images(4, 5), DiscriminatorFeatures(discriminator)
    start = squared_error(generator.images(pivots), images)
    # A bound that some images reach on the way and others do not: the batch shrinks while it is tuned.
    settings = config(stop_mse=float(start.median()) * 0.3, deltas=form, rank=2)
    batch = tune(Inverter(generator, settings, 3, network), pivots, targets_of(images, network)).read()
    for i in range(4):
        one = slice(i, i + 1)
        alone = tune(Inverter(generator, settings, 3, network), pivots[one], targets_of(images[one], network)).read()
        for name, delta in alone.items():
            assert_close(batch[name][one], delta, atol=2e-4, rtol=1e-3)
        tuned = generator.images(pivots[one], deltas={name: d[one] for name, d in batch.items()})
        drawn = generator.images(pivots[one], deltas=alone)
        assert_close(tuned, drawn, atol=1e-4, rtol=1e-3)
        assert_close(psnr(tuned, images[one]), psnr(drawn, images[one]), atol=0.01, rtol=0)


def test_images_stop_by_themselves(
    generator: Generator, pivots: Tensor, draw_images: Callable[[int, int], Tensor]
) -> None:
    images = draw_images(4, 5)
    images[0] = generator.images(pivots[:1])[0]
    settings = config(stop_mse=1e-6, locality_weight=0.0)
    deltas = tune(Inverter(generator, settings, 0), pivots, targets_of(images, None)).read()
    moved = torch.stack([d.flatten(1).abs().amax(1) for d in deltas.values()]).amax(0)
    assert moved[0] == 0  # drawn exactly by its pivot: done before the first step
    assert (moved[1:] > 0).all()


def test_tuning_lowers_the_error_and_respects_the_bound(
    generator: Generator, pivots: Tensor, draw_images: Callable[[int, int], Tensor]
) -> None:
    images = draw_images(4, 5)
    before = squared_error(generator.images(pivots), images)
    settings = config(tuning_steps=150, stop_mse=2e-5)
    deltas = tune(Inverter(generator, settings, 0), pivots, targets_of(images, None)).read()
    after = squared_error(generator.images(pivots, deltas=deltas), images)
    assert (after < before).all()
    assert (after <= 2e-5).any()


def test_no_steps_no_change(generator: Generator, pivots: Tensor, draw_images: Callable[[int, int], Tensor]) -> None:
    deltas = tune(Inverter(generator, config(tuning_steps=0), 0), pivots, targets_of(draw_images(4, 5), None))
    assert all((d == 0).all() for d in deltas.read().values())


def test_generator_is_left_as_it_came(
    generator: Generator, pivots: Tensor, draw_images: Callable[[int, int], Tensor]
) -> None:
    state = {k: v.clone() for k, v in generator.state_dict().items()}
    try:
        generator.requires_grad_(True).train()
        tune(Inverter(generator, config(tuning_steps=3), 0), pivots, targets_of(draw_images(4, 5), None))
        assert generator.training
        assert all(p.requires_grad and p.grad is None for p in generator.parameters())
    finally:
        generator.requires_grad_(False).eval()
    for k, v in generator.state_dict().items():
        assert torch.equal(v, state[k])


def test_locality_codes_lie_at_their_distance(generator: Generator, pivots: Tensor) -> None:
    images = torch.rand(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    codes = locality_codes(generator, pivots, images, 3, alpha=2.5, seed=0)
    assert codes.shape == (4, 3, *pivots.shape[1:])
    assert_close((codes - pivots[:, None]).norm(dim=-1), torch.full(codes.shape[:3], 2.5))
    shuffled = torch.tensor([2, 0, 3, 1])
    assert_close(locality_codes(generator, pivots[shuffled], images[shuffled], 3, 2.5, 0), codes[shuffled])


def test_locality_keeps_edits_as_they_were(
    generator: Generator, pivots: Tensor, draw_images: Callable[[int, int], Tensor]
) -> None:
    targets = targets_of(draw_images(4, 9), None)
    free = tune(
        Inverter(generator, config(tuning_steps=60, tuning_lr=0.02, locality_weight=0.0), 0), pivots, targets
    ).read()
    holding = config(tuning_steps=60, tuning_lr=0.02, locality_weight=1.0, locality_alpha=3.0)
    held = tune(Inverter(generator, holding, 0), pivots, targets).read()
    nothing = {name: torch.zeros_like(d) for name, d in free.items()}
    assert_close(editability(generator, pivots, nothing, 0), torch.ones(4))
    assert editability(generator, pivots, held, 0).mean() > editability(generator, pivots, free, 0).mean()
