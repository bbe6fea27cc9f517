"""What the counterfactuals of all models are compared with."""

import pytest
import torch
from support_explained import image_set

from audit.embeddings.embedding import embed_all
from audit.errors import DataError
from audit.pipeline.reference import build_reference


def test_real_images_are_those_of_the_target_class_and_the_nearest_is_found(small) -> None:
    embedded = embed_all(small.networks.embedding, small.calibration.images())
    built = build_reference(small.context, small.networks, small.queries, small.calibration, embedded, {1: 3})
    real = small.calibration.images()[small.calibration.row_labels == 1]
    assert list(built.real) == [1]
    assert built.real[1].name == "bright"
    assert sorted(map(tuple, built.real[1].embedded.tolist())) == sorted(
        map(tuple, embedded[small.calibration.row_labels == 1].tolist())
    )
    by_hand = (small.queries.images[:, None] - real[None]).abs().flatten(2).mean(2).amin(1)
    torch.testing.assert_close(built.real[1].nearest, by_hand)
    assert torch.equal(built.inversions, small.queries.inversion.images)
    assert built.regions == {}


def test_some_of_the_queries_have_what_concerns_them(small) -> None:
    embedded = embed_all(small.networks.embedding, small.calibration.images())
    built = build_reference(small.context, small.networks, small.queries, small.calibration, embedded, {1: 3})
    assert built.of(small.queries) is built
    some = small.queries.select(torch.tensor([4, 1]))
    found = built.of(some)
    assert torch.equal(found.inversions, small.queries.inversion.images[[4, 1]])
    assert torch.equal(found.embedded_inversions, built.embedded_inversions[[4, 1]])
    assert torch.equal(found.real[1].nearest, built.real[1].nearest[[4, 1]])
    assert found.edits == built.edits


def test_a_target_class_without_real_images_is_refused(small) -> None:
    images = small.calibration.images()[small.calibration.row_labels == 0]
    only = image_set(images, torch.zeros(len(images), dtype=torch.int64))
    embedded = embed_all(small.networks.embedding, images)
    with pytest.raises(DataError, match="no image of the target class 'bright'"):
        build_reference(small.context, small.networks, small.queries, only, embedded, {1: 3})
