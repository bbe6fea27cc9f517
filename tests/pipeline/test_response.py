"""What every model answers to the edits made on its images."""

import torch
from support_small_audit import by_brightness

from audit.pipeline.explain import explain_model
from audit.pipeline.reference import Reference
from audit.pipeline.response import responses
from audit.results import MAIN_REGION


def reference_of(small, mask: torch.Tensor | None) -> Reference:
    regions = {} if mask is None else {MAIN_REGION: mask}
    return Reference(small.queries, small.networks, torch.zeros(6, 1), {}, regions, {}, {})


def test_a_model_that_reads_the_region_answers_to_edits_inside_it(small) -> None:
    explained = [small.explained(small.subject(by_brightness(side))) for side in ("left", "whole")]
    left = torch.zeros(6, 16, 16, dtype=torch.bool)
    left[:5, :, :8] = True  # one image does not show the region
    right = left.flip(2)

    def shares(mask: torch.Tensor) -> dict[str, float]:
        found = {}
        for name, answers in responses(small.context, explained, reference_of(small, mask)).items():
            assert answers.inside.isnan().tolist() == [False] * 5 + [True]
            found[name] = float(answers.share(torch.ones(1, 6, dtype=torch.float64)))
        return found

    # Black and white are exchanged everywhere; what a model reads is what it answers to.
    assert shares(left)["left"] > 0.99
    assert shares(right)["left"] < 0.01
    assert 0.2 < shares(left)["whole"] < 0.8


def test_a_model_on_images_of_its_own_is_asked_about_its_own_edits(small) -> None:
    left, whole = (small.explained(small.subject(by_brightness(side))) for side in ("left", "whole"))
    mask = torch.zeros(6, 16, 16, dtype=torch.bool)
    mask[..., :8] = True
    alone = explain_model(
        small.context, small.method, small.networks, small.queries.select(torch.arange(4)), left.subject
    )
    found = responses(small.context, [alone, whole], reference_of(small, mask))
    assert [len(one.inside) for one in found.values()] == [4, 6]
    (own,) = responses(small.context, [whole], reference_of(small, mask)).values()
    assert torch.equal(found["whole"].inside, own.inside)
    both = responses(small.context, [left, whole], reference_of(small, mask))["whole"]
    assert (both.inside > own.inside).all()


def test_without_a_region_nothing_is_asked(small) -> None:
    explained = [small.explained(small.subject(by_brightness(side))) for side in ("left", "whole")]
    assert responses(small.context, explained, reference_of(small, None)) == {}
    everywhere = responses(small.context, explained, reference_of(small, torch.ones(6, 16, 16, dtype=torch.bool)))
    assert not everywhere["left"].is_defined  # all of an image is no region
