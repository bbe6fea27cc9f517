"""Frechet distance: closed forms, the matrix square root of scipy, the public implementations, and its properties."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from audit.errors import MetricError
from audit.metrics.fid import frechet_distance


def normal(seed: int, n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_square_root(a: torch.Tensor, b: torch.Tensor) -> float:
    cov_a, cov_b = np.cov(a.numpy(), rowvar=False), np.cov(b.numpy(), rowvar=False)
    shift = a.mean(0).numpy() - b.mean(0).numpy()
    return float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(sqrtm(cov_a @ cov_b)).real)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 6), (200, 9, 12), (8, 300, 20), (7, 9, 30)])
def test_agrees_with_the_matrix_square_root_also_where_covariances_are_singular(n: int, m: int, d: int) -> None:
    a, b = normal(1, n, d) * 1.5, normal(2, m, d) + 0.3
    # The square root of a singular product is itself inaccurate: about 1e-6 of the trace.
    assert frechet_distance(a, b) == pytest.approx(by_square_root(a, b), rel=1e-4)


def test_closed_form_of_one_dimension() -> None:
    a, b = normal(3, 50, 1), normal(4, 60, 1) * 3 + 2
    expected = (a.mean() - b.mean()) ** 2 + (a.std() - b.std()) ** 2
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-9)


def test_closed_form_of_a_shift_and_of_a_scale() -> None:
    a = normal(5, 40, 10)
    assert frechet_distance(a, a + 0.5) == pytest.approx(10 * 0.25, rel=1e-9)
    centred = a - a.mean(0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * float(centred.var(0).sum()), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(2, 30), st.integers(1, 20))
def test_symmetric_zero_for_equal_sets_and_blind_to_rotation(seed: int, n: int, m: int, d: int) -> None:
    a, b = normal(seed, n, d), normal(seed + 1, m, d) + 1
    rotation = torch.linalg.qr(normal(seed + 2, d, d)).Q
    value = frechet_distance(a, b)
    assert value == pytest.approx(frechet_distance(b, a), rel=1e-6, abs=1e-9)
    assert value == pytest.approx(frechet_distance(a @ rotation, b @ rotation), rel=1e-6, abs=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-8 * (1 + float(a.square().sum())))
    assert frechet_distance(a, a[torch.randperm(n)]) == pytest.approx(0, abs=1e-6)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(MetricError, match="1 images is refused, at least 2"):
        frechet_distance(normal(0, 1, 4), normal(1, 30, 4))
