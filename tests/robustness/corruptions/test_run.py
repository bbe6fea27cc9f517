"""Natural corruptions: order of severities, any size and channels, seeded draws, the same images for every model."""

from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from sklearn.datasets import load_sample_image
from torch import Tensor, nn
from torch.nn import functional as F

from audit.config import CorruptionsConfig
from audit.data.audit_set import AuditSet
from audit.errors import ClassifierError, ConfigError, MetricError
from audit.metrics.intervals import paired_difference
from audit.results import Corruptions
from audit.robustness.balls import attacked_rows
from audit.robustness.corruptions import blur, digital, noise, weather
from audit.robustness.corruptions.blur import disk_kernel, trail_kernels
from audit.robustness.corruptions.constants import CIFAR_C, IMAGENET_C, Constants, fitting
from audit.robustness.corruptions.filters import convolve, gaussian_blur
from audit.robustness.corruptions.run import (
    CORRUPTIONS,
    SEVERITIES,
    corrupt,
    corruption_accuracies,
)
from audit.robustness.corruptions.weather import plasma
from audit.robustness.panel import Panel

UNORDERED_AS_PUBLISHED = ("glass_blur", "snow", "frost")
"""The published constants themselves do not rise at every step here (imagecorruptions behaves alike at 224x224)."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def photographs(side: int) -> Tensor:
    """Eight square parts `[8, 3, side, side]` of two photographs."""
    pictures = torch.stack([torch.from_numpy(load_sample_image(f"{n}.jpg").copy()) for n in ("china", "flower")])
    pictures = pictures.permute(0, 3, 1, 2).float() / 255
    parts = [pictures[..., y : y + 256, x : x + 256] for y in (0, 171) for x in (100, 300)]
    return F.interpolate(torch.cat(parts), (side, side), mode="area").clamp(0, 1)


@pytest.mark.parametrize("side", [28, 64])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_change_rises_with_severity(name: str, side: int) -> None:
    images = photographs(side).repeat(3, 1, 1, 1)
    change = [float((corrupt(images, name, s, generator()) - images).abs().mean()) for s in SEVERITIES]
    assert change[0] > 0.004
    assert change[-1] > 1.1 * change[0]
    if name not in UNORDERED_AS_PUBLISHED:
        assert change == sorted(change)


CIFAR_UNORDERED = {"elastic_transform", "pixelate", "glass_blur", "frost"}
"""As published: the affine part of the elastic transform shrinks, boxes of 30 and 28 pixels fall out alike, the weight
of the image falls as that of the frost rises."""


@pytest.mark.parametrize("side", [16, 28, 32, 64, 100])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_cifar_change_rises_with_severity_at_every_size(name: str, side: int) -> None:
    images = photographs(side).repeat(3, 1, 1, 1)
    change = [float((corrupt(images, name, s, generator(), CIFAR_C) - images).abs().mean()) for s in SEVERITIES]
    assert change[0] > 0.001
    if name not in CIFAR_UNORDERED:
        # Severities 3 and 4 of the motion blur differ in the trail's faint end only.
        assert all(more > 0.97 * less for less, more in pairwise(change))


@pytest.mark.parametrize(
    "name", ["gaussian_noise", "shot_noise", "impulse_noise", "snow", "frost", "fog", "pixelate", "jpeg_compression"]
)
def test_cifar_constants_are_milder_on_small_images(name: str) -> None:
    images = photographs(32)
    mild, harsh = (
        sum(float((corrupt(images, name, s, generator(), published) - images).abs().mean()) for s in SEVERITIES)
        for published in (CIFAR_C, IMAGENET_C)
    )
    assert mild < 0.8 * harsh


def test_an_affine_map_moves_three_points_by_as_much_as_is_asked() -> None:
    images = torch.zeros(50, 1, 33, 33)
    grid = torch.stack(torch.meshgrid(torch.arange(33.0), torch.arange(33.0), indexing="ij"))
    places = digital._affine_places(images, 2.0, generator())
    assert places.shape == (50, 2, 33, 33)
    # Affine: the middle of a row is read from the middle of what its ends are read from.
    assert torch.allclose(places[:, :, :, 16], (places[:, :, :, 0] + places[:, :, :, 32]) / 2, atol=1e-3)
    # The corner (16 - 11, 16 - 11) moves by up to 2 pixels, and the map around it bends lengths by about a fifth.
    assert 1.5 < float((places - grid)[:, :, 5, 5].abs().max()) < 3.5
    assert torch.allclose(digital._affine_places(images, 0.0, generator())[0], grid, atol=1e-4)


def test_the_list_is_chosen_by_the_size_or_by_name() -> None:
    assert fitting("auto", 32, 32) is fitting("auto", 64, 64) is fitting("auto", 64, 300) is CIFAR_C
    assert fitting("auto", 65, 65) is fitting("auto", 224, 224) is IMAGENET_C
    assert fitting("imagenet-c", 28, 28) is IMAGENET_C
    assert fitting("cifar-c", 224, 224) is CIFAR_C
    for published in (IMAGENET_C, CIFAR_C):
        for values in vars(published).values():
            assert not isinstance(values, tuple) or len(values) == 5
    with pytest.raises(ValidationError, match="cifar-c"):
        CorruptionsConfig(constants="cifar")


@pytest.mark.parametrize("name", ["glass_blur", "snow", "frost"])
def test_likeness_falls_over_severities_where_change_need_not_rise(name: str) -> None:
    images = photographs(64).repeat(3, 1, 1, 1)

    def likeness(severity: int) -> float:
        pair = torch.stack([corrupt(images, name, severity, generator()).flatten(1), images.flatten(1)])
        return float(F.cosine_similarity(*(pair - pair.mean(dim=2, keepdim=True)), dim=1).mean())

    assert likeness(1) > likeness(3) > likeness(5)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 16, 16), (2, 20, 33), (3, 40, 24), (4, 17, 31), (1, 8, 8)])
@pytest.mark.parametrize("published", [IMAGENET_C, CIFAR_C], ids=lambda published: published.name)
def test_any_size_and_channels_give_images(name: str, shape: tuple[int, int, int], published: Constants) -> None:
    images = torch.rand(2, *shape, generator=generator(1))
    for severity in (1, 5):
        corrupted = corrupt(images, name, severity, generator(), published)
        assert corrupted.shape == images.shape
        assert corrupted.dtype == torch.float32
        assert torch.isfinite(corrupted).all()
        assert corrupted.min() >= 0
        assert corrupted.max() <= 1
        assert not torch.equal(corrupted, images)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_draws_come_from_the_generator_alone(name: str) -> None:
    images = photographs(32)
    before = torch.random.get_rng_state()
    first, again = (corrupt(images, name, 3, generator(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = corrupt(images, name, 3, generator(6))
    drawn = name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
    assert torch.equal(first, other) != drawn


@pytest.mark.parametrize("published", [IMAGENET_C, CIFAR_C], ids=lambda published: published.name)
@pytest.mark.parametrize("family", [noise, blur, weather, digital])
def test_all_work_is_on_the_device_of_the_images(family: ModuleType, published: Constants) -> None:
    """A tensor left on the CPU cannot meet one of the meta device, as it could not meet one of a GPU."""
    images = torch.empty(2, 3, 32, 32, device="meta")
    # These three read values, or hand them to the CPU, which the meta device has not.
    for name in (set(CORRUPTIONS) & set(vars(family))) - {"shot_noise", "pixelate", "jpeg_compression"}:
        assert vars(family)[name](images, 3, generator(), published).device.type == "meta"


@pytest.mark.parametrize("name", ["glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform"])
def test_images_of_a_batch_are_drawn_apart(name: str) -> None:
    corrupted = corrupt(photographs(32)[:1].expand(3, -1, -1, -1), name, 3, generator())
    assert not torch.equal(corrupted[0], corrupted[1])
    assert not torch.equal(corrupted[1], corrupted[2])


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "zoom_blur", "snow", "frost", "elastic_transform"])
def test_lengths_follow_the_side(name: str) -> None:
    """A corrupted image made smaller looks like the small image corrupted: the same part of the scene is lost."""
    large = photographs(224)
    small = F.interpolate(large, (112, 112), mode="area")
    change_large = F.avg_pool2d(corrupt(large, name, 4, generator()) - large, 2).std()
    change_small = (corrupt(small, name, 4, generator()) - small).std()
    assert change_small == pytest.approx(change_large, rel=0.25)


def test_deterministic_ones_by_hand() -> None:
    image = torch.tensor([0.2, 0.6]).repeat(8, 4)[None, None]
    assert torch.allclose(corrupt(image, "contrast", 1, generator()), 0.4 + 0.4 * (image - 0.4))
    assert torch.allclose(corrupt(image, "brightness", 2, generator()), image + 0.2)
    # Half of 8 columns: every cell holds a dark and a bright pixel.
    assert torch.allclose(corrupt(image, "pixelate", 2, generator()), torch.full_like(image, 0.4))
    colour = torch.tensor([0.5, 0.25, 0.0])[None, :, None, None].expand(1, 3, 8, 8)
    raised = torch.tensor([0.6, 0.3, 0.0])[None, :, None, None]
    assert torch.allclose(corrupt(colour, "brightness", 1, generator()), raised.expand_as(colour))


def test_noise_has_its_published_size() -> None:
    grey = torch.full((1, 1, 256, 256), 0.5)
    assert corrupt(grey, "gaussian_noise", 1, generator()).std() == pytest.approx(0.08, rel=0.02)
    # Poisson: variance is mean over photons.
    assert corrupt(grey, "shot_noise", 1, generator()).var() == pytest.approx(0.5 / 60, rel=0.03)
    impulse = corrupt(grey, "impulse_noise", 5, generator())
    assert float((impulse == 0).float().mean()) == pytest.approx(0.135, abs=0.005)
    assert float((impulse == 1).float().mean()) == pytest.approx(0.135, abs=0.005)


def test_blurs_keep_an_even_image_and_kernels_sum_to_one() -> None:
    even = torch.full((2, 3, 32, 32), 0.3)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate"):
        assert torch.allclose(corrupt(even, name, 5, generator()), even, atol=1e-5)
    for radius in (0.4, 1.0, 3.0, 10.0):
        assert disk_kernel(radius, 0.5).sum() == pytest.approx(1, abs=1e-5)
    # The second moment of a disk along an axis is r^2 / 4.
    kernel = disk_kernel(10.0, 0.01)
    offsets = torch.arange(len(kernel)) - len(kernel) // 2
    assert float((kernel.sum(dim=0) * offsets**2).sum()) == pytest.approx(25, rel=0.02)
    assert torch.allclose(trail_kernels(torch.tensor([0.0, 2.0]), 5.0, 3.0).sum(dim=(1, 2)), torch.ones(2), atol=1e-5)


def test_fourier_convolution_is_convolution() -> None:
    image, kernels = torch.rand(2, 3, 9, 12, generator=generator()), torch.rand(2, 5, 5, generator=generator(1))
    padded = F.pad(image, (2,) * 4, mode="replicate")
    direct = [F.conv2d(padded[i][:, None], kernels[i].flip(0, 1)[None, None])[:, 0] for i in range(2)]
    assert torch.allclose(convolve(image, kernels, "replicate"), torch.stack(direct), atol=1e-4)


def test_gaussian_blur_agrees_with_scipy() -> None:
    from scipy.ndimage import gaussian_filter

    image = torch.rand(1, 1, 20, 31, generator=generator())
    theirs = gaussian_filter(image[0, 0].double().numpy(), 1.7, mode="nearest")
    assert np.allclose(gaussian_blur(image, 1.7)[0, 0].numpy(), theirs, atol=1e-5)


def test_plasma_spans_zero_to_one_and_is_rougher_with_less_decay() -> None:
    smooth, rough = (plasma(8, 64, decay, generator(), torch.zeros(1)) for decay in (2.0, 1.4))
    for fractal in (smooth, rough):
        assert fractal.shape == (8, 64, 64)
        assert torch.allclose(fractal.amin(dim=(1, 2)), torch.zeros(8))
        assert torch.allclose(fractal.amax(dim=(1, 2)), torch.ones(8))
    assert rough.diff(dim=1).abs().mean() > 1.5 * smooth.diff(dim=1).abs().mean()


def test_bad_input_is_told_in_one_sentence() -> None:
    images = torch.rand(1, 3, 16, 16)
    with pytest.raises(ConfigError, match="did you mean 'gaussian_noise'"):
        corrupt(images, "gausian_noise", 1, generator())
    with pytest.raises(MetricError, match="Severity is 6"):
        corrupt(images, "fog", 6, generator())
    with pytest.raises(MetricError, match="5 channels"):
        corrupt(torch.rand(1, 5, 16, 16), "fog", 1, generator())
    with pytest.raises(MetricError, match="4x16"):
        corrupt(torch.rand(1, 1, 4, 16), "fog", 1, generator())
    with pytest.raises(MetricError, match="undo the normalisation"):
        corrupt(images * 3 - 1, "fog", 1, generator())
    assert torch.isfinite(corrupt(images - images.min() - 5e-7, "shot_noise", 1, generator())).all()
    assert corrupt(images[:0], "snow", 1, generator()).shape == (0, 3, 16, 16)


class Brightness(nn.Module):
    """Decides by the mean pixel: class 1 above `level`."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(level))
        self.norm = nn.BatchNorm1d(1)
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images)
        score = images.mean(dim=(1, 2, 3)) - self.level
        return torch.stack([-score, score], dim=1)


def grey_set(n: int) -> AuditSet:
    levels = np.linspace(0.1, 0.9, n, dtype=np.float32)
    return AuditSet(
        read_image=lambda row: np.full((16, 16), levels[row], dtype=np.float32),
        labels=(levels > 0.5).astype(np.int64),
        class_names=("dark", "bright"),
        ids=tuple(str(i) for i in range(n)),
        splits=np.array(["test"] * n),
        image_shape=(1, 16, 16),
    )


def config(**values: Any) -> CorruptionsConfig:
    return CorruptionsConfig(**{"names": ("brightness", "contrast"), "n": 10, **values})


def accuracies(
    data: AuditSet, settings: CorruptionsConfig, seed: int = 0, **models: nn.Module
) -> dict[str, tuple[Corruptions, Tensor]]:
    return corruption_accuracies(Panel(models), data, settings, seed=seed, batch_size=4)


def test_accuracy_can_be_told_by_hand() -> None:
    data, settings = grey_set(20), config(severities=(1, 5))
    result, correct = accuracies(data, settings, it=Brightness(0.5))["it"]
    chosen = attacked_rows(data, 10, 0)
    levels = chosen.images().mean(dim=(1, 2, 3))
    for j, more in enumerate((0.05, 0.3)):
        assert torch.equal(correct[:, 0, j], ((levels + more).clamp_max(1) > 0.5) == (chosen.row_labels == 1))
    # Contrast keeps the mean of an even image, and so every answer.
    assert correct[:, 1].all()
    assert result.n == 10
    assert [row.name for row in result.corruptions] == ["brightness", "contrast"]
    assert set(result.corruptions[0].accuracy) == {1, 5}
    assert result.corruptions[0].accuracy[5].value == pytest.approx(float(correct[:, 0, 1].float().mean()))
    assert result.corruptions[0].mean == pytest.approx(float(correct[:, 0].float().mean()))
    mean = result.mean_accuracy
    assert mean.value == pytest.approx(float(correct.float().mean()))
    assert mean.low <= mean.value <= mean.high
    assert mean.low < mean.high
    assert result.constants == "cifar-c"
    right = (levels > 0.5) == (chosen.row_labels == 1)
    assert result.clean_accuracy is not None
    assert (result.clean_accuracy.value, result.clean_accuracy.n) == (float(right.float().mean()), 10)


def test_all_models_meet_the_same_images_alone_or_together() -> None:
    data, settings = grey_set(9), config(names=("gaussian_noise", "fog"), severities=(3,))
    models = [Brightness(0.5).train(), Brightness(0.4), Brightness(0.5)]
    together = list(accuracies(data, settings, 3, a=models[0], b=models[1], c=models[2]).values())
    alone = accuracies(data, settings, 3, b=models[1])["b"]
    count = len(models[0].seen)
    assert all(torch.equal(a, b) for a, b in zip(models[0].seen, models[1].seen[:count], strict=True))
    assert all(torch.equal(a, b) for a, b in zip(models[1].seen[:count], models[1].seen[count:], strict=True))
    assert together[1][0] == alone[0]
    assert torch.equal(together[1][1], alone[1])
    assert paired_difference(together[0][1][:, 0, 0], together[2][1][:, 0, 0]).value == 0
    assert models[0].training
    assert models[0].norm.training
    assert models[0].level.requires_grad


def test_another_seed_draws_other_images() -> None:
    model, settings = Brightness(0.5), config(names=("gaussian_noise",), severities=(1,))
    for seed in (0, 1):
        accuracies(grey_set(4), settings, seed, it=model)
    assert not torch.equal(model.seen[0], model.seen[1])


def test_unknown_corruption_and_empty_set_are_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'jpeg_compression'"):
        accuracies(grey_set(4), config(names=("jpeg",)), it=Brightness(0.5))
    with pytest.raises(MetricError, match="no image"):
        accuracies(grey_set(4).select([]), config(), it=Brightness(0.5))


def test_a_classifier_that_fails_leaves_the_others_their_numbers() -> None:
    class Refuses(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("no such kernel")

    data, settings = grey_set(9), config(severities=(1,))
    panel = Panel({"failing": Refuses(), "whole": Brightness(0.5)})
    found = corruption_accuracies(panel, data, settings, seed=0, batch_size=4)
    alone = accuracies(data, settings, it=Brightness(0.5))["it"]
    assert isinstance(panel.failed["failing"], ClassifierError)
    assert "no such kernel" in str(panel.failed["failing"])
    assert list(found) == ["whole"]
    assert found["whole"][0] == alone[0]
