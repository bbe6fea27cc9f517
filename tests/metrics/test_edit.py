"""The edit: its map, size, extent, and the nearest real target image."""

import pytest
import torch

from audit.errors import MetricError
from audit.metrics.edit import changed_share, edit_map, mean_absolute, nearest_distance, ruins


def test_map_size_and_extent_of_a_known_edit() -> None:
    inversion = torch.full((2, 3, 4, 4), 0.5)
    counterfactual = inversion.clone()
    counterfactual[0, 1, :2, :2] += 0.3
    counterfactual[1, 0, 0, 0] += 3 / 255
    assert float(edit_map(counterfactual, inversion)[0, 0, 0]) == pytest.approx(0.1)
    assert mean_absolute(counterfactual, inversion)[0].item() == pytest.approx(0.3 * 4 / 48)
    assert changed_share(counterfactual, inversion).tolist() == [4 / 16, 0]


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_nearest_is_the_minimum_over_all_pairs(chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, real = torch.rand(6, 1, 5, 5, generator=generator), torch.rand(11, 1, 5, 5, generator=generator)
    distance = nearest_distance(queries, real, chunk)
    every = (queries[:, None] - real[None]).abs().mean((2, 3, 4))
    assert torch.allclose(distance, every.min(1).values, atol=1e-6)


def test_no_or_other_real_images_are_refused() -> None:
    for real in (torch.zeros(0, 1, 5, 5), torch.zeros(3, 1, 6, 6)):
        with pytest.raises(MetricError):
            nearest_distance(torch.zeros(2, 1, 5, 5), real)


def test_an_edit_spoils_an_image_where_it_is_as_large_as_an_exchange_and_leads_no_nearer() -> None:
    real = torch.tensor([[1.0, 0.0], [0.9, 0.1]])
    inverted = torch.tensor([[0.0, 1.0]] * 4)
    edited = torch.tensor([[0.0, -1.0], [1.0, 0.2], [0.0, -1.0], [0.0, -1.0]])
    large, small = 0.3, 0.1
    l1, nearest = torch.tensor([large, large, small, large]), torch.tensor([0.2, 0.2, 0.2, 0.0])
    # Far and away; far but near to real ones; small; an image that is a real target image itself.
    assert ruins(l1, nearest, edited, inverted, real).tolist() == [True, False, False, False]
