"""A distribution row carries its context: inversion, floor, n and the embedding's name."""

import pytest
import torch
from torch import Tensor

from audit.errors import MetricError
from audit.metrics.distribution import EmbeddedSets, Kind, canonical_kinds, distribution_row, real_floor
from audit.metrics.fid import frechet_distance


class Named:
    """Only the name and the hash are read from the network here."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.weights_sha256 = "0" * 64

    def embed(self, images: Tensor) -> Tensor:
        return images.flatten(1)


def normal(seed: int, n: int, shift: float = 0.0) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.mark.parametrize("kind", ["fid", "mmd"])
def test_value_lies_between_floor_and_inversion(kind: Kind) -> None:
    generator = torch.Generator().manual_seed(0)
    sets = EmbeddedSets("healthy", normal(0, 30, 2.0), normal(0, 30, 0.0), normal(2, 60, 3.0))
    row = distribution_row((kind, "biased"), Named("small"), sets, generator)
    assert row.floor < row.value < row.inversion
    assert (row.metric, row.n, row.n_real, row.target, row.embedding.name) == (kind, 30, 60, "healthy", "small")


def test_only_clip_makes_it_cmmd() -> None:
    generator = torch.Generator().manual_seed(0)
    sets = EmbeddedSets("x", normal(0, 9), normal(1, 9), normal(2, 9))
    row = distribution_row(("mmd", "unbiased"), Named("clip-vit-l-14"), sets, generator)
    assert (row.metric, row.estimator) == ("cmmd", "unbiased")


def test_floor_shrinks_with_n_and_repeats_by_seed() -> None:
    real = normal(3, 200)
    few, many = (real_floor(real, n, frechet_distance, torch.Generator().manual_seed(0)) for n in (10, 100))
    assert few > many > 0
    assert few == real_floor(real, 10, frechet_distance, torch.Generator().manual_seed(0))


def test_too_few_are_refused() -> None:
    sets = EmbeddedSets("x", normal(0, 9), normal(1, 9), normal(2, 40))
    with pytest.raises(MetricError, match="FID towards 'x' on 9 images is refused"):
        distribution_row(("fid", "biased"), Named("s"), sets, torch.Generator(), 16)


def test_each_canonical_network_stands_for_its_own_metric() -> None:
    assert canonical_kinds("clip-vit-large-patch14-336") == (("mmd", "biased"), ("mmd", "unbiased"))
    assert canonical_kinds("inception-v3-fid") == (("fid", "biased"),)
