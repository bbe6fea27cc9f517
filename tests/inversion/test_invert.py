"""The stages of an inversion together: errors fall from stage to stage, images do not influence one another."""

import copy
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from audit.config import InversionConfig
from audit.errors import DataError, GeneratorError
from audit.generator.features import DiscriminatorFeatures
from audit.generator.stylegan2.discriminator import Discriminator
from audit.generator.stylegan2.networks import Generator
from audit.inversion.codes import candidate_codes, nearest_codes, spread
from audit.inversion.encoder import Encoder
from audit.inversion.invert import invert, to_cpu
from audit.inversion.inverter import Inverter
from audit.inversion.loss import targets_of
from audit.inversion.pivot import distance_to_w, optimise_pivots


def config(**values: object) -> InversionConfig:
    base = {"pivot_steps": 15, "tuning_steps": 20, "stop_mse": 0.0, "batch_size": 2}
    return InversionConfig.model_validate(base | values)


def encoder_for(generator: Generator) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = Encoder(16, 1, generator.num_ws, generator.w_dim, 16, generator.weights_sha256)
    return encoder.eval().requires_grad_(False)


def test_stages_lower_the_error(
    generator: Generator, discriminator: Discriminator, draw_images: Callable[[int, int], Tensor]
) -> None:
    images, done = draw_images(3, 2), []
    network = DiscriminatorFeatures(discriminator)
    found = invert(Inverter(generator, config(), 0, network), images, advance=lambda amount=1: done.append(amount))
    assert found.pivots.shape == (3, generator.num_ws, generator.w_dim)
    assert found.encoder_mse is None
    assert found.perceptual is not None
    assert found.perceptual.shape == (3,)
    assert found.mse.mean() < found.pivot_mse.mean()
    assert_close(found.images, generator.images(found.pivots, deltas=found.deltas.read()))
    assert_close(found.mse, (found.images - images).square().mean((1, 2, 3)))
    assert sum(done) == pytest.approx(3)


def test_an_inversion_does_not_depend_on_the_others(
    generator: Generator, draw_images: Callable[[int, int], Tensor]
) -> None:
    images = draw_images(3, 4)
    whole = invert(Inverter(generator, config(batch_size=3), 1), images)
    alone = invert(Inverter(generator, config(), 1), images[2:])
    assert_close(whole.select([2]).images, alone.images, atol=1e-4, rtol=1e-3)
    assert_close(whole.select([2]).pivots, alone.pivots, atol=1e-3, rtol=1e-3)


def test_equal_seeds_give_equal_inversions(generator: Generator, draw_images: Callable[[int, int], Tensor]) -> None:
    images, state = draw_images(2, 4), torch.get_rng_state()
    one, two = (invert(Inverter(generator, config(), 1), images) for _ in range(2))
    assert torch.equal(one.images, two.images)
    assert torch.equal(torch.get_rng_state(), state)


def test_methods_stop_at_their_stage(generator: Generator, draw_images: Callable[[int, int], Tensor]) -> None:
    images, encoder = draw_images(2, 4), encoder_for(generator)
    first = invert(Inverter(generator, config(method="encoder"), 0, None, encoder), images)
    assert not first.deltas
    assert first.encoder_mse is not None
    assert_close(first.mse, first.encoder_mse)
    assert_close(first.pivots, encoder(images))
    second = invert(Inverter(generator, config(method="optimise"), 0, None, encoder), images)
    assert not second.deltas
    assert second.encoder_mse is not None
    assert_close(second.encoder_mse, first.mse)
    assert second.mse.mean() < first.mse.mean()


def test_select_takes_rows_of_everything(generator: Generator, draw_images: Callable[[int, int], Tensor]) -> None:
    found = invert(Inverter(generator, config(), 0), draw_images(3, 4))
    chosen = found.select([2, 0])
    assert torch.equal(chosen.pivots, found.pivots[[2, 0]])
    assert all(torch.equal(chosen.deltas[name][:], delta[[2, 0]]) for name, delta in found.deltas.items())
    assert chosen.method == "pti"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: results must leave it")
def test_inversions_of_a_device_come_back_to_the_cpu(
    generator: Generator, draw_images: Callable[[int, int], Tensor]
) -> None:
    there = copy.deepcopy(generator).cuda()
    found = invert(Inverter(there, config(), 0), draw_images(3, 4))
    tensors = [found.pivots, found.images, found.mse, found.pivot_mse, *found.deltas.read().values()]
    assert all(tensor.device.type == "cpu" for tensor in tensors)


def test_moving_to_the_cpu_keeps_every_field(
    generator: Generator, discriminator: Discriminator, draw_images: Callable[[int, int], Tensor]
) -> None:
    network = DiscriminatorFeatures(discriminator)
    found = invert(Inverter(generator, config(), 0, network, encoder_for(generator)), draw_images(2, 4))
    moved = to_cpu(found)
    for name in (field.name for field in fields(found)):
        assert getattr(moved, name) is not None
        if name == "deltas":
            assert_close(moved.deltas.read(), found.deltas.read())
        elif name != "method":
            assert_close(getattr(moved, name), getattr(found, name))
    assert moved.method == found.method


def test_user_errors_say_how_to_mend(generator: Generator, draw_images: Callable[[int, int], Tensor]) -> None:
    images = draw_images(2, 4)
    with pytest.raises(GeneratorError, match=r"inversion\.encoder"):
        invert(Inverter(generator, config(method="encoder"), 0), images)
    with pytest.raises(GeneratorError, match=r"data\.image_size"):
        invert(Inverter(generator, config(), 0), torch.rand(2, 1, 32, 32))
    with pytest.raises(DataError, match="no images"):
        invert(Inverter(generator, config(), 0), images[:0])
    with pytest.raises(GeneratorError, match="tuning_lr"):
        invert(Inverter(generator, config(tuning_lr=1e30), 0), images)
    other = encoder_for(generator)
    other.generator_sha256 = "0" * 64
    with pytest.raises(GeneratorError, match="another generator"):
        invert(Inverter(generator, config(), 0, None, other), images)


def test_the_pull_towards_w_shortens_the_offsets(
    generator: Generator, draw_images: Callable[[int, int], Tensor]
) -> None:
    images, codes = draw_images(3, 6), candidate_codes(generator, 0)
    start = codes[:3, None].expand(-1, generator.num_ws, -1)
    found = [
        optimise_pivots(
            Inverter(generator, config(pivot_delta_weight=weight), 0), start, targets_of(images, None), spread(codes)
        )
        for weight in (0.0, 1.0)
    ]
    free, held = (distance_to_w(ws, generator.mapping.w_avg, spread(codes)).mean() for ws in found)
    assert held < free


def test_nearest_codes_finds_its_own_image(generator: Generator) -> None:
    codes = candidate_codes(generator, 0)[:10]
    drawn = generator.images(codes[:, None].expand(-1, generator.num_ws, -1))
    assert torch.equal(nearest_codes(generator, drawn[[7, 2]], codes, 10**9), codes[[7, 2]])
