"""What every model answers to the edits made for the others."""

from dataclasses import replace

import torch
from support_small_audit import by_brightness

from audit.metrics.response import Answers
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


def test_why_nothing_is_answered(small) -> None:
    explained = [small.explained(small.subject(by_brightness(side))) for side in ("left", "whole")]
    assert responses(small.context, explained, reference_of(small, None)) == dict.fromkeys(("left", "whole"), NO_REGION)
    mask = torch.ones(6, 16, 16, dtype=torch.bool)
    assert responses(small.context, explained[:1], reference_of(small, mask)) == {"left": ALONE}
    other = replace(explained[1], queries=small.queries.select(torch.arange(5)))
    assert responses(small.context, [explained[0], other], reference_of(small, mask)) == {"left": ALONE, "whole": ALONE}
    found = responses(small.context, explained, reference_of(small, mask))["left"]
    assert isinstance(found, Answers)
    assert not found.is_defined  # all of an image is no region
