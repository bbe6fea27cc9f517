"""What every model answers to the edits made on its images."""

from dataclasses import replace

import torch
from support_small_audit import by_brightness
from torch.testing import assert_close

from audit.config import RankingConfig
from audit.pipeline.context import Context
from audit.pipeline.explain import explain_model
from audit.pipeline.reference import Reference
from audit.pipeline.response import acquisitions, responses
from audit.results import MAIN_REGION


def reference_of(small, mask: torch.Tensor | None) -> Reference:
    regions = {} if mask is None else {MAIN_REGION: mask}
    return Reference(small.queries, small.networks, torch.zeros(6, 1), {}, regions, {}, {})


def edits_alone(small) -> Context:
    config = small.context.config
    return replace(small.context, config=config.model_copy(update={"ranking": RankingConfig(acquisition=False)}))


def test_a_model_that_reads_the_region_answers_to_edits_inside_it(small) -> None:
    explained = [small.explained(small.subject(by_brightness(side))) for side in ("left", "whole")]
    left = torch.zeros(6, 16, 16, dtype=torch.bool)
    left[:5, :, :8] = True  # one image does not show the region
    right = left.flip(2)

    def shares(mask: torch.Tensor) -> dict[str, float]:
        found = {}
        for name, answers in responses(edits_alone(small), explained, reference_of(small, mask)).items():
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
    unchanged = replace(left.counterfactuals, images=small.queries.inversion.images)
    idle = replace(left, counterfactuals=unchanged)  # edits that change nothing
    both = responses(small.context, [idle, whole], reference_of(small, mask))["whole"]
    assert_close(both.inside, own.inside / 2**0.5)
    assert_close(both.acquired, own.acquired)


def test_outside_the_region_another_acquisition_counts_beside_the_edits(small) -> None:
    explained = [small.explained(small.subject(by_brightness(side))) for side in ("left", "whole")]
    mask = torch.zeros(6, 16, 16, dtype=torch.bool)
    mask[..., :8] = True
    reference = reference_of(small, mask)
    of_edits, of_all = (responses(context, explained, reference) for context in (edits_alone(small), small.context))
    images = reference.inversions
    for one in explained:
        classifier, targets = one.subject.classifier, one.targets[:, None]

        def said(shown: torch.Tensor) -> torch.Tensor:
            return classifier(shown).detach().double().softmax(1).gather(1, targets)[:, 0]  # noqa: B023

        before = said(images)
        moves = torch.stack([said(image) - before for image in acquisitions(images)])
        expected = moves.square().mean(0).sqrt().masked_fill(before >= 0.5, 0.0)
        name = one.subject.name
        assert expected.max() > 1e-4  # it is sure, and yet brightness moves it
        assert_close(of_all[name].outside - of_edits[name].outside, expected, atol=1e-9, rtol=1e-4)
        assert torch.equal(of_all[name].inside, of_edits[name].inside)


def test_acquisitions_are_a_tenth_more_and_less_of_what_a_film_can_have() -> None:
    image = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    mean = image.mean((2, 3), keepdim=True)
    expected = [
        f(g)
        for f in (lambda g: g * image, lambda g: mean + g * (image - mean), lambda g: image**g)
        for g in (1.1, 1 / 1.1)
    ]
    for one, other in zip(acquisitions(image), expected, strict=True):
        assert_close(one, other)


def test_without_a_region_nothing_is_asked(small) -> None:
    explained = [small.explained(small.subject(by_brightness(side))) for side in ("left", "whole")]
    assert responses(small.context, explained, reference_of(small, None)) == {}
    everywhere = responses(small.context, explained, reference_of(small, torch.ones(6, 16, 16, dtype=torch.bool)))
    assert not everywhere["left"].is_defined  # all of an image is no region
