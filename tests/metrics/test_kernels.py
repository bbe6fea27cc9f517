"""Realism's kernels: what the energy distance sees and CMMD's kernel does not, and what realism is in known cases."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from audit.metrics.cmmd import Kernel
from audit.metrics.components import TargetKernels, realism, target_kernels
from audit.metrics.distribution import EmbeddedSets
from audit.metrics.kernels import KERNELS, energy_kernel

N, DIMENSIONS = 64, 8
EVERYTHING = torch.ones(1, N, dtype=torch.float64)


def cloud(seed: int, n: int, axis: int, shift: float = 0.0, spread: float = 0.3) -> Tensor:
    """Draw points around `3 e_0 + shift e_1` that spread along `axis` and a little along the others."""
    points = 0.02 * torch.randn(n, DIMENSIONS, generator=torch.Generator().manual_seed(seed))
    points[:, axis] *= spread / 0.02
    points[:, 0] += 3
    points[:, 1] += shift
    return points


def kernels(edited: Tensor, inverted: Tensor, real: Tensor, kernel: Kernel = energy_kernel) -> TargetKernels:
    flipped, splits = torch.ones(N, dtype=torch.bool), torch.Generator().manual_seed(0)
    return target_kernels(
        EmbeddedSets("healthy", edited, inverted, real), torch.arange(N), flipped, splits, kernel=kernel
    )


def closed(edited: Tensor, kernel: Kernel = energy_kernel, seed: int = 0) -> float:
    """Realism of `edited` where inversions lie beside the real images, which spread along another axis."""
    return float(realism([kernels(edited, cloud(seed, N, 2, shift=1.0), cloud(seed + 1, 200, 3), kernel)], EVERYTHING))


def test_energy_distance_sees_spread_where_the_kernel_of_cmmd_sees_means() -> None:
    same_mean = {name: kernels(cloud(0, N, 2), cloud(0, N, 2), cloud(1, 200, 3), k) for name, k in KERNELS.items()}
    seen = {name: float(group.distances(EVERYTHING)[0]) / group.noise for name, group in same_mean.items()}
    assert abs(seen["cmmd"]) < 1
    assert seen["energy"] > 5


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=list(KERNELS))
def test_real_images_have_realism_one_and_unedited_ones_zero(kernel: Kernel) -> None:
    assert closed(cloud(9, N, 3), kernel) > 0.98
    assert closed(cloud(0, N, 2, shift=1.0), kernel) == 0


def test_a_collapsed_set_is_less_real_than_real_images() -> None:
    mean = cloud(1, 200, 3).mean(0).repeat(N, 1)
    assert closed(mean) < closed(cloud(9, N, 3)) - 0.1
    assert closed(mean, KERNELS["cmmd"]) > 0.98


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_realism_grows_with_the_share_of_real_images(seed: int) -> None:
    real, inverted = cloud(seed + 2, N, 3), cloud(seed, N, 2, shift=1.0)
    values = [closed(torch.cat([real[:k], inverted[k:]]), seed=seed) for k in range(0, N + 1, 16)]
    assert values == sorted(values)
    assert values[0] == 0
    assert values[-1] > 0.95


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100))
def test_realism_in_energy_distance_knows_no_unit(seed: int, scale: float) -> None:
    edited, inverted, real = cloud(seed, N, 2, 0.4), cloud(seed, N, 2, 1.0), cloud(seed + 1, 200, 3)
    one, other = (
        kernels(edited, inverted, real, lambda a, b, by=by: energy_kernel(by * a, by * b)) for by in (1.0, scale)
    )
    assert float(realism([one], EVERYTHING)) == pytest.approx(float(realism([other], EVERYTHING)), rel=1e-9)
