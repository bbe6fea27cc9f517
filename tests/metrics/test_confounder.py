"""When a model's edits lie in a confounder: closed forms, and what does not veto."""

import pytest
import torch

from audit.metrics.confounder import confounder_share, veto
from audit.results import MAIN_REGION

N, SIDE = 24, 10


def masks() -> dict[str, torch.Tensor]:
    """The class's region is the left half's first column, the marker the last one; both cover a tenth."""
    empty = torch.zeros(N, SIDE, SIDE, dtype=torch.bool)
    region, marker = empty.clone(), empty.clone()
    region[:, :, 0] = True
    marker[:, :, -1] = True
    return {MAIN_REGION: region, "marker": marker, "nothing": empty}


def edits(in_region: float, in_marker: float, elsewhere: float = 0.0) -> torch.Tensor:
    edit = torch.full((N, SIDE, SIDE), elsewhere)
    edit[:, :, 0], edit[:, :, -1] = in_region, in_marker
    return edit


def weights(draws: int = 200) -> torch.Tensor:
    drawn = torch.randint(N, (draws, N), generator=torch.Generator().manual_seed(0))
    return torch.zeros(draws, N, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())


ALL = torch.ones(N, dtype=torch.bool)


def test_an_edit_of_the_marker_is_vetoed_with_its_numbers() -> None:
    found = confounder_share(edits(0.1, 0.3), ALL, masks(), ["marker"], weights())
    assert not isinstance(found, str)
    assert (found.n, found.regions) == (N, ["marker"])
    assert (found.mass, found.main_mass) == (pytest.approx(0.75), pytest.approx(0.25))
    assert found.excess == pytest.approx((0.75 - 0.1) / 0.9)
    assert found.ahead.value == pytest.approx((0.75 - 0.25) / 0.9)
    assert veto(found) == (
        "75 % of what is seen of its edits lies in 'marker', named as a confounder, 25 % in the region that carries "
        "the class (n = 24)"
    )


@pytest.mark.parametrize(
    "edit",
    [
        edits(0.3, 0.1),  # in the region, and a little on the marker
        edits(0.2, 0.2),  # in both alike
        edits(0.05, 0.05, 0.05),  # everywhere
        edits(0.0, 0.055, 0.05),  # hardly more on the marker than anywhere: less than a tenth beyond chance
        edits(0.1, 0.015),  # what is on the marker cannot be seen
    ],
)
def test_edits_that_are_elsewhere_do_not_veto(edit: torch.Tensor) -> None:
    found = confounder_share(edit, ALL, masks(), ["marker"], weights())
    assert not isinstance(found, str)
    assert veto(found) is None


def test_noise_does_not_veto_by_luck_of_a_few_images() -> None:
    vetoes = 0
    for seed in range(40):
        edit = torch.rand(N, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) ** 8
        found = confounder_share(edit, ALL, masks(), ["marker"], weights())
        assert not isinstance(found, str)
        vetoes += found.vetoes
    assert vetoes == 0


def test_only_flips_that_show_the_confounder_count() -> None:
    regions, edit, flipped = masks(), edits(0.3, 0.0), ALL.clone()
    edit[:4] = edits(0.0, 0.3)[:4]
    flipped[4:] = False
    found = confounder_share(edit, flipped, regions, ["marker"], weights())
    assert not isinstance(found, str)
    assert (found.n, found.mass, found.vetoes) == (4, 1.0, True)
    regions["marker"][1:4] = False
    assert "1 of the edited images" in str(confounder_share(edit, flipped, regions, ["marker"], weights()))


def test_several_confounders_are_one_region_and_a_class_may_have_none() -> None:
    regions = masks()
    both = regions | {"other": regions.pop(MAIN_REGION)}
    found = confounder_share(edits(0.1, 0.3), ALL, both, ["marker", "other"], weights())
    assert not isinstance(found, str)
    assert (found.mass, found.main_mass, found.vetoes) == (pytest.approx(1.0), None, True)
    assert str(veto(found)).endswith("lies in 'marker' and 'other', named as a confounder (n = 24)")
