"""Rotation and translation against closed forms: quarter turns, whole pixels, and which images a grid can fool."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audit.config import EnsembleConfig, RobustnessConfig
from audit.data.audit_set import AuditSet
from audit.errors import ConfigError
from audit.robustness.attacks.registry import check_attacks
from audit.robustness.attacks.spatial import NAME, SpatialGrid, spatial_attack, transformed
from audit.robustness.evaluate import robust_accuracy

SIDE = 20


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def test_a_quarter_turn_is_exact() -> None:
    images = noise(2, 3, 8, 8)
    assert torch.allclose(transformed(images, (90.0, 0.0, 0.0), "zeros"), torch.rot90(images, 1, (2, 3)), atol=1e-5)


def test_half_a_turn_of_an_oblong_image_is_exact() -> None:
    images = noise(2, 1, 6, 10)
    assert torch.allclose(transformed(images, (180.0, 0.0, 0.0), "zeros"), images.flip(2, 3), atol=1e-5)


def test_an_oblong_image_is_turned_without_being_stretched() -> None:
    images = torch.zeros(1, 1, 9, 15)
    images[0, 0, 4, 9] = 1  # two pixels right of the middle
    turned = transformed(images, (90.0, 0.0, 0.0), "zeros")
    assert divmod(int(turned.flatten().argmax()), 15) == (2, 7)  # two pixels above it


@pytest.mark.parametrize(("padding", "filled"), [("zeros", 0.0), ("border", None)])
def test_a_shift_by_whole_pixels_is_exact(padding: str, filled: float | None) -> None:
    images = noise(1, 1, 10, 20)
    moved = transformed(images, (0.0, 0.2, -0.1), padding)
    assert torch.allclose(moved[..., 2:, :18], images[..., :8, 2:], atol=1e-5)
    expected = images[..., :1, 2:].expand(1, 1, 2, 18) if filled is None else torch.full((1, 1, 2, 18), filled)
    assert torch.allclose(moved[..., :2, :18], expected, atol=1e-5)


def test_a_turn_comes_before_the_shift() -> None:
    images = noise(1, 1, 10, 10)
    both = transformed(images, (90.0, 0.0, 0.3), "zeros")
    one_by_one = transformed(torch.rot90(images, 1, (2, 3)), (0.0, 0.0, 0.3), "zeros")
    assert torch.allclose(both, one_by_one, atol=1e-5)


class RightHalf(nn.Module):
    """Decides for class 1 where most of the light is in the right half."""

    def forward(self, images: Tensor) -> Tensor:
        light = images.sum(dim=(1, 2))
        return torch.stack([light[:, : SIDE // 2].sum(1), light[:, SIDE // 2 :].sum(1)], dim=1)


def bars(columns: list[int]) -> Tensor:
    images = torch.zeros(len(columns), 1, SIDE, SIDE)
    for row, column in enumerate(columns):
        images[row, :, :, column] = 1
    return images


def attack(images: Tensor, labels: list[int], **options: object) -> Tensor:
    return spatial_attack(
        RightHalf(), images, torch.tensor(labels), eps=1.0, norm="Linf", generator=torch.Generator(), **options
    )


def test_what_a_shift_of_the_grid_can_fool_is_fooled_by_the_least_of_them() -> None:
    images, labels = bars([9, 8, 7, 11]), [0, 0, 0, 1]
    # Shifts of 0, 1 and 2 pixels either way: columns 9 and 8 cross the middle at 10, and 11 does at 9.
    found = attack(images, labels, degrees=0, angles=1, shift=0.1, shifts=5)
    fooled = RightHalf()(found).argmax(1) != torch.tensor(labels)
    assert fooled.tolist() == [True, True, False, True]
    assert found[:, 0, SIDE // 2].argmax(1).tolist() == [10, 10, 7, 9]
    assert torch.equal(found[2], images[2])


def test_a_turn_of_the_grid_fools() -> None:
    images = torch.zeros(1, 1, SIDE, SIDE)
    images[0, 0, 1, 8] = 1  # high up, a little left of the middle
    assert RightHalf()(attack(images, [0], degrees=30, angles=1, shifts=1)).argmax(1).item() == 0
    assert RightHalf()(attack(images, [0], degrees=30, angles=3, shifts=1)).argmax(1).item() == 1


def test_the_default_grid_is_that_of_the_paper() -> None:
    points = SpatialGrid().transformations()
    assert len(points) == 31 * 5 * 5
    assert points[0] == (0.0, 0.0, 0.0)
    assert max(angle for angle, _, _ in points) == 30
    assert SpatialGrid().extent == "30deg,10%"


def test_it_is_measured_beside_the_others_and_has_no_radius() -> None:
    images = bars([9, 8, 7, 11]).numpy()[:, 0]
    dataset = AuditSet(
        read_image=lambda row: images[row],
        labels=np.array([0, 0, 0, 1]),
        class_names=("left", "right"),
        ids=("a", "b", "c", "d"),
        splits=np.array(["test"] * 4),
        image_shape=(1, SIDE, SIDE),
    )
    options = {NAME: {"degrees": 0, "angles": 1}}
    config = RobustnessConfig(n=4, attacks=(NAME, "square"), eps=("2/255",), options=options, trust=None)
    found = robust_accuracy(RightHalf(), dataset, config, 0)
    (measured,) = found.robust.attacks[NAME].values()
    assert measured.robust_accuracy.value == 0.25
    assert (measured.eps, measured.extent) == (1.0, "0deg,10%")
    assert measured.outcomes == {"a": NAME, "b": NAME, "c": None, "d": NAME}
    assert set(found.standing) == {f"robust.attacks.{NAME}.0deg,10%", "robust.attacks.square.2/255"}
    assert {one.metric for one in found.examples} == {f"robust.attacks.{NAME}.0deg,10%"}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"options": {NAME: {"degrees": 270}}}, "degrees"),
        ({"options": {NAME: {"angels": 3}}}, "no option 'angels'"),
        ({"attacks": ("ensemble",), "ensemble": EnsembleConfig(stages=(NAME,))}, "does not work in Linf"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(changed: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_attacks(RobustnessConfig(**{"attacks": (NAME,), **changed}))
