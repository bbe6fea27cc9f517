"""Localisation: closed forms, ties, invariances, scikit-learn's ROC AUC, and the permutation test under its null."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from audit.errors import MetricError
from audit.metrics.localisation import localise, permutation_p, region_share


def square(n: int = 1, size: int = 8) -> torch.Tensor:
    mask = torch.zeros(n, size, size, dtype=torch.bool)
    mask[:, 2:4, 2:4] = True
    return mask


def random_edit(seed: int, n: int = 4, size: int = 8) -> torch.Tensor:
    return torch.rand(n, size, size, generator=torch.Generator().manual_seed(seed))


def test_perfect_and_missed_edits() -> None:
    mask = square(2)
    edit = mask.float() * 0.2
    edit[1] = (~mask[1]).float()
    values = localise(edit, mask)
    for key in ("mass", "rank_accuracy", "pointing", "iou", "auc"):
        assert values[key].tolist() == [1, 0]
    assert values["area"].tolist() == [4 / 64] * 2


def test_a_constant_edit_scores_what_chance_would() -> None:
    values = localise(torch.ones(1, 8, 8), square())
    for key in ("mass", "area", "rank_accuracy", "pointing"):
        assert values[key].item() == pytest.approx(4 / 64)
    assert values["auc"].item() == pytest.approx(0.5)


def test_empty_masks_and_zero_edits_are_not_a_number() -> None:
    mask, edit = square(3), random_edit(0, 3)
    mask[0], edit[1] = False, 0
    values = localise(edit, mask)
    for key in values:
        assert torch.isnan(values[key][0])
        assert torch.isfinite(values[key][2])
        assert torch.isnan(values[key][1]) == (key != "area")
    full = localise(random_edit(1, 1), torch.ones(1, 8, 8, dtype=torch.bool))
    assert torch.isnan(full["auc"])
    assert full["mass"].item() == pytest.approx(1)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 100), st.integers(1, 60))
def test_invariances_and_the_reference_auc(seed: int, factor: float, size: int) -> None:
    edit = (random_edit(seed) * 6).round()  # rounded, so that there are many ties
    order = torch.randperm(64, generator=torch.Generator().manual_seed(seed))
    mask = torch.zeros(4, 64, dtype=torch.bool)
    mask[:, order[:size]] = True
    mask = mask.view(4, 8, 8)
    values = localise(edit, mask)
    shuffled = localise(edit.flatten(1)[:, order].view(4, 8, 8), mask.flatten(1)[:, order].view(4, 8, 8))
    flipped = localise(edit.flip(2), mask.flip(2))
    scaled = localise(edit.double() * factor, mask)
    for key in values:
        for other in (shuffled, flipped, scaled):
            assert torch.allclose(values[key], other[key])
        assert ((values[key] >= 0) & (values[key] <= 1 + 1e-12)).all()
    reference = [roc_auc_score(m.flatten(), e.flatten()) for m, e in zip(mask.numpy(), edit.numpy(), strict=True)]
    assert values["auc"].tolist() == pytest.approx(reference)


def test_top_pixels_against_topk_without_ties() -> None:
    edit, mask = random_edit(5), square(4)
    top = torch.zeros(4, 64, dtype=torch.bool).scatter(1, edit.flatten(1).topk(4).indices, True)
    both, either = (top & mask.flatten(1)).sum(1), (top | mask.flatten(1)).sum(1)
    values = localise(edit, mask)
    assert torch.allclose(values["rank_accuracy"], both.double() / 4)
    assert torch.allclose(values["iou"], both.double() / either)


def test_permutation_draws_are_torus_shifts() -> None:
    # With one image and one draw p is 1/2 or 1, so the null can be listed: all 64 shifts of the mask.
    edit, mask = random_edit(7, 1), square()
    shifted = [mask.roll((i, j), (1, 2)) for i in range(8) for j in range(8)]
    masses = torch.tensor([localise(edit, other)["mass"].item() for other in shifted])
    exact = (masses >= masses[0] - 1e-9).double().mean().item()
    drawn = permutation_p(edit, mask, 20000, torch.Generator().manual_seed(0))
    assert drawn == pytest.approx(exact, abs=0.02)


def test_permutation_p_is_small_inside_uniform_under_the_null_and_reproducible() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = square(6)
    assert permutation_p(mask.float() + 0.01, mask, 199, generator) == 1 / 200
    values = torch.tensor([permutation_p(random_edit(s, 6), mask, 199, generator) for s in range(200)])
    assert abs(float(values.mean()) - 0.5) < 0.07
    assert float((values <= 0.1).double().mean()) < 0.17
    assert float((values <= 0.5).double().mean()) == pytest.approx(0.5, abs=0.12)
    again = [permutation_p(random_edit(1), square(4), 50, torch.Generator().manual_seed(4)) for _ in range(2)]
    assert again[0] == again[1]


def test_region_summary_counts_what_it_skipped() -> None:
    mask, edit = square(4), random_edit(2, 4)
    mask[0] = False
    edit[1] = 0
    row = region_share("region", edit, mask, 20, torch.Generator().manual_seed(0))
    assert (row.n, row.skipped) == (2, 2)
    assert row.mass is not None
    assert row.area is not None
    assert row.lift == pytest.approx(row.mass / row.area)
    assert row.mass_interval is not None
    assert 0 <= row.mass_interval[0] < row.mass < row.mass_interval[1] <= 1
    nothing = region_share("marker", edit, torch.zeros_like(mask), 20, torch.Generator().manual_seed(0))
    assert (nothing.n, nothing.mass, nothing.lift, nothing.p_value, nothing.auc) == (0, None, None, None, None)


def test_bad_shapes_are_refused() -> None:
    for edit, mask in (
        (random_edit(0), square(3)),
        (random_edit(0), square(4).float()),
        (-random_edit(0), square(4)),
    ):
        with pytest.raises(MetricError):
            localise(edit, mask)
