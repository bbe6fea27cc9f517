"""The five components: closed forms, the weighted estimator against a plain one, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.errors import MetricError
from audit.metrics.cmmd import gaussian_kernel, mmd
from audit.metrics.components import (
    ModelScores,
    TargetKernels,
    components,
    localisation_scores,
    realism,
    realism_refusal,
    sparsity_scores,
    target_kernels,
)
from audit.metrics.distribution import EmbeddedSets


def cloud(seed: int, n: int, shift: float, d: int = 6) -> torch.Tensor:
    points = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * 0.3
    points[:, 0] += 1
    points[:, 1] += shift
    return points


def kernels(seed: int = 0, n: int = 24, edited: float = 1.0, flipped: torch.Tensor | None = None) -> TargetKernels:
    """Real images lie at shift 2, inversions at 0, counterfactuals at `edited`."""
    return target_kernels(
        EmbeddedSets("healthy", cloud(seed, n, edited), cloud(seed, n, 0.0), cloud(seed + 1, 80, 2.0)),
        torch.arange(n),
        torch.ones(n, dtype=torch.bool) if flipped is None else flipped,
        torch.Generator().manual_seed(0),
        kernel=gaussian_kernel,
    )


def ones(n: int) -> torch.Tensor:
    return torch.ones(1, n, dtype=torch.float64)


def test_equal_weights_give_the_unbiased_discrepancy() -> None:
    counterfactual, inversion = kernels().distances(ones(24))
    real = cloud(1, 80, 2.0)
    assert float(counterfactual) == pytest.approx(mmd(cloud(0, 24, 1.0), real, estimator="unbiased"), abs=1e-9)
    assert float(inversion) == pytest.approx(mmd(cloud(0, 24, 0.0), real, estimator="unbiased"), abs=1e-9)


def test_weights_of_zero_and_one_are_the_subset() -> None:
    weights = ones(24)
    weights[0, 10:] = 0
    value = kernels().distances(weights)[0]
    assert float(value) == pytest.approx(mmd(cloud(0, 24, 1.0)[:10], cloud(1, 80, 2.0), estimator="unbiased"), abs=1e-9)


def test_bootstrap_draws_centre_on_the_estimate() -> None:
    group = kernels()
    drawn = torch.randint(24, (2000, 24), generator=torch.Generator().manual_seed(0))
    weights = torch.zeros(2000, 24, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(2000, 24).double())
    draws = group.distances(weights)[0]
    estimate = float(group.distances(ones(24))[0])
    assert float(draws.mean()) == pytest.approx(estimate, abs=4 * float(draws.std()) / 2000**0.5)


def test_realism_runs_from_no_edit_to_arrival() -> None:
    values = [float(realism([kernels(edited=shift)], ones(24))) for shift in (0.0, 0.5, 1.0, 1.5, 2.0)]
    assert values[0] == 0
    assert values == sorted(values)
    assert values[-1] > 0.95
    assert float(realism([kernels(edited=-1.0)], ones(24))) == 0


def test_unflipped_images_enter_with_their_inversion() -> None:
    nobody = torch.zeros(24, dtype=torch.bool)
    assert float(realism([kernels(edited=2.0, flipped=nobody)], ones(24))) == 0


def test_target_classes_are_weighted_by_their_images() -> None:
    first, second = kernels(edited=2.0), kernels(seed=5, n=12, edited=0.5)
    second = TargetKernels(**(vars(second) | {"rows": torch.arange(24, 36)}))
    weights = ones(36)
    a = float(realism([first], weights))
    b = float(realism([second], weights))
    assert float(realism([first, second], weights)) == pytest.approx((24 * a + 12 * b) / 36)
    weights[0, 24:] = 0
    weights[0, 24] = 12  # one image twelve times has no pair: its class is left out of the draw
    assert float(realism([first, second], weights)) == pytest.approx(a)


def test_no_gap_is_refused_with_a_reason() -> None:
    inside = target_kernels(
        EmbeddedSets("healthy", cloud(0, 24, 2.0), cloud(0, 24, 2.0), cloud(1, 80, 2.0)),
        torch.arange(24),
        torch.ones(24, dtype=torch.bool),
        torch.Generator().manual_seed(0),
    )
    assert "already as close to real 'healthy'" in str(realism_refusal(inside))
    assert realism_refusal(kernels()) is None
    values, missing = components(ModelScores("m", torch.ones(24, dtype=torch.bool), realism=(inside,)), ones(24))
    assert "realism" not in values
    assert "no gap to close" in missing["realism"]


def test_too_few_images_are_refused() -> None:
    sets = EmbeddedSets("x", cloud(0, 10, 0.0), cloud(0, 10, 0.0), cloud(1, 40, 2.0))
    flipped = torch.ones(10, dtype=torch.bool)
    with pytest.raises(MetricError, match="at least 16"):
        target_kernels(sets, torch.arange(10), flipped, torch.Generator(), min_images=16)


def test_sparsity_and_localisation_closed_forms() -> None:
    flipped = torch.tensor([True, True, True, False, True])
    edit = torch.tensor([0.0, 0.02, 0.3, 0.0, 0.1])
    nearest = torch.tensor([0.1, 0.08, 0.1, 0.1, 0.0])
    sparse = sparsity_scores(edit, nearest, flipped)
    assert sparse[:4].tolist() == pytest.approx([1, 0.75, 0, 0])
    assert torch.isnan(sparse[4])
    nan = torch.nan
    mass = torch.tensor([1.0, 0.55, 0.05, nan, nan])
    area = torch.tensor([0.1, 0.1, 0.1, 0.1, nan])
    local = localisation_scores(mass, area, flipped)
    assert local[:4].tolist() == pytest.approx([1, 0.5, 0, 0])
    assert torch.isnan(local[4])
    unseen = localisation_scores(torch.tensor([torch.nan]), torch.tensor([0.1]), torch.ones(1, dtype=torch.bool))
    assert unseen.tolist() == [0.0]  # it has an area, and nothing that could be seen in it
    assert torch.isnan(localisation_scores(torch.ones(1), torch.ones(1), torch.ones(1, dtype=torch.bool))).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30))
def test_every_component_lies_between_zero_and_one_and_skips_nan(seed: int, n: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, dtype=torch.float64, generator=generator)
    holes = scores.clone()
    holes[torch.rand(n, generator=generator) < 0.3] = torch.nan
    model = ModelScores("m", scores > 0.5, sparsity=scores, localisation=holes, transfer=scores)
    values, missing = components(model, ones(n))
    for value in values.values():
        assert 0 <= float(value) <= 1
    assert float(values["sparsity"]) == pytest.approx(float(scores.mean()))
    if "localisation" in values:
        assert float(values["localisation"]) == pytest.approx(float(holes.nanmean()))
    else:
        assert "2 are needed" in missing["localisation"]
    assert "realism" in missing
