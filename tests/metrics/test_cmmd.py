"""MMD: the anchors of CMMD, the plain double sum, chunking, and the unbiased estimator's mean."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.errors import MetricError
from audit.metrics import cmmd
from audit.metrics.cmmd import SCALE, gaussian_kernel, metric_name, mmd, unit_norm


def normal(seed: int, n: int, d: int) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_anchors() -> None:
    first = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    second = torch.tensor([[0.0, 1.0]]).repeat(3, 1)
    assert mmd(first, second) == pytest.approx(19.900333, abs=1e-6)
    assert mmd(first, -first) == pytest.approx(39.602653, abs=1e-6)
    assert mmd(first, first) == 0
    assert mmd(5 * first, 0.1 * second) == pytest.approx(19.900333, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 12), st.integers(2, 12), st.integers(1, 8), st.integers(1, 5))
def test_estimators_are_their_double_sums_whatever_the_chunk(seed: int, n: int, m: int, d: int, chunk: int) -> None:
    a, b = normal(seed, n, d), normal(seed + 1, m, d)
    unit_a, unit_b = unit_norm(a), unit_norm(b)
    pairs = ((unit_a, unit_a), (unit_b, unit_b), (unit_a, unit_b))
    k_aa, k_bb, k_ab = (gaussian_kernel(p, q) for p, q in pairs)
    biased = k_aa.mean() + k_bb.mean() - 2 * k_ab.mean()
    off_a, off_b = k_aa.sum() - k_aa.trace(), k_bb.sum() - k_bb.trace()
    unbiased = off_a / (n * (n - 1)) + off_b / (m * (m - 1)) - 2 * k_ab.mean()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cmmd, "CHUNK", chunk)
        assert mmd(a, b) == pytest.approx(SCALE * float(biased), abs=1e-9)
        assert mmd(a, b, "unbiased") == pytest.approx(SCALE * float(unbiased), abs=1e-9)
    assert mmd(a, b) == pytest.approx(mmd(b, a), abs=1e-9)


def test_unbiased_is_zero_on_average_and_biased_is_not() -> None:
    pairs = [(normal(2 * i, 10, 5), normal(2 * i + 1, 10, 5)) for i in range(300)]
    unbiased = torch.tensor([mmd(a, b, estimator="unbiased") for a, b in pairs])
    biased = torch.tensor([mmd(a, b) for a, b in pairs])
    standard_error = float(unbiased.std()) / 300**0.5
    assert abs(float(unbiased.mean())) < 3 * standard_error
    assert float(biased.mean()) > 10 * standard_error


def test_name_follows_the_embedding() -> None:
    assert metric_name("clip-vit-l-14-336") == "cmmd"
    assert metric_name("phantom-factors") == "mmd"


def test_too_few_images_are_refused() -> None:
    with pytest.raises(MetricError, match="at least 2"):
        mmd(normal(0, 1, 3), normal(1, 20, 3))
