"""What every model answers to the edits made for the others."""

import pytest
import torch
from support_small_audit import by_brightness

from audit.metrics.response import Answers
from audit.pipeline.explain import explain_model
from audit.pipeline.reference import Reference
from audit.pipeline.response import ALONE, NO_REGION, responses
from audit.results import MAIN_REGION


def reference_of(small, mask: torch.Tensor | None) -> Reference:
    regions = {} if mask is None else {MAIN_REGION: mask}
    return Reference(small.queries, small.networks, torch.zeros(6, 1), {}, regions, {}, {})


def test_a_model_that_reads_the_region_answers_to_the_edits_of_others_inside_it(small) -> None:
    explained = [small.explained(small.subject(by_brightness(side))) for side in ("left", "whole")]
    left = torch.zeros(6, 16, 16, dtype=torch.bool)
    left[:5, :, :8] = True  # one image does not show the region
    right = left.flip(2)

    def shares(mask: torch.Tensor) -> dict[str, float]:
        found = {}
        for name, answers in responses(small.context, explained, reference_of(small, mask)).items():
            assert isinstance(answers, Answers)
            assert answers.inside.isnan().tolist() == [False] * 5 + [True]
            found[name] = float(answers.share(torch.ones(1, 6, dtype=torch.float64)))
        return found

    # Black and white are exchanged everywhere; what a model reads is what it answers to.
    assert shares(left)["left"] > 0.99
    assert shares(right)["left"] < 0.01
    assert 0.2 < shares(left)["whole"] < 0.8


def test_a_model_on_images_of_its_own_is_asked_about_the_edits_on_those_of_the_others(small) -> None:
    left, whole = (small.explained(small.subject(by_brightness(side))) for side in ("left", "whole"))
    mask = torch.zeros(6, 16, 16, dtype=torch.bool)
    mask[..., :8] = True
    some = small.queries.select(torch.arange(4))
    alone = explain_model(small.context, small.method, small.networks, some, left.subject)
    found = responses(small.context, [alone, whole], reference_of(small, mask))
    together = responses(small.context, [left, whole], reference_of(small, mask))
    for name, n in (("left", 4), ("whole", 6)):
        answers, same = found[name], together[name]
        assert isinstance(answers, Answers)
        assert isinstance(same, Answers)
        assert len(answers.inside) == n
        ones = torch.ones(1, n, dtype=torch.float64)
        assert float(answers.share(ones)) == pytest.approx(float(same.share(torch.ones(1, 6).double())), abs=0.05)
        assert answers.share(torch.arange(n, dtype=torch.float64)[None]) == answers.share(ones)  # it is not redrawn


def test_why_nothing_is_answered(small) -> None:
    explained = [small.explained(small.subject(by_brightness(side))) for side in ("left", "whole")]
    assert responses(small.context, explained, reference_of(small, None)) == dict.fromkeys(("left", "whole"), NO_REGION)
    mask = torch.ones(6, 16, 16, dtype=torch.bool)
    assert responses(small.context, explained[:1], reference_of(small, mask)) == {"left": ALONE}
    found = responses(small.context, explained, reference_of(small, mask))["left"]
    assert isinstance(found, Answers)
    assert not found.is_defined  # all of an image is no region
