"""What every model answers inside the region of the class, to the edits made on its images, and outside of it."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor

from audit.metrics.response import Answers, answers, together
from audit.pipeline.answers import confidences_of, of_targets
from audit.pipeline.context import Context
from audit.pipeline.explain import Explained
from audit.pipeline.reference import Reference
from audit.reliance.interventions import INTERVENTIONS
from audit.reliance.spec import intervene
from audit.results import MAIN_REGION
from audit.runtime.progress import stage_progress

ACQUISITION = ("exposure", "contrast", "gamma")
"""Interventions by which an image is acquired otherwise and nothing moves: where a finding lies may count."""
STRENGTH = 0.1
"""So little that a person decides as before; one for all, so that they count alike."""


def responses(context: Context, explained: Sequence[Explained], reference: Reference) -> Mapping[str, Answers]:
    """Return by the name of a model its answers to the edits of all models on the same images, its own among them, and
    to another acquisition of these images.

    Empty where the data give no region. Of edits towards the class that an image belongs to, as those of misclassified
    images are, nothing is asked.
    """
    if MAIN_REGION not in reference.regions:
        return {}
    found = {}
    with stage_progress("answers to edits", len(explained)) as advance:
        for one in explained:
            makers = [each for each in explained if torch.equal(each.queries.positions, one.queries.positions)]
            shown = reference.of(one.queries)
            otherwise = acquisitions(shown.inversions) if context.config.ranking.acquisition else ()
            unedited = chain([shown.inversions], otherwise)
            said = torch.stack([confidences_of(context, one.subject.classifier, images) for images in unedited])
            found[one.subject.name] = together([_answers(context, one, maker, shown, said) for maker in makers])
            advance()
    return found


def acquisitions(images: Tensor) -> Iterator[Tensor]:
    """Yield `images` `[N, C, H, W]` as they would be with a tenth more and less exposure, contrast and gamma, one
    at a time, since each is as large as all images.
    """
    for name in ACQUISITION:
        for change in INTERVENTIONS.builtin[name].variants.values():
            yield intervene(images, change, STRENGTH)


def _answers(context: Context, one: Explained, maker: Explained, reference: Reference, unedited: Tensor) -> Answers:
    """Answers of a model to the edits made for `maker`; its probabilities for the inversions, and for these acquired
    otherwise, are `unedited` `[1 + V, N, K]`.

    NaN where there is no region or the edit is not asked about.
    """
    mask, before, edited = reference.regions[MAIN_REGION][:, None], reference.inversions, maker.counterfactuals.images
    parts = (torch.where(mask, edited, before), torch.where(mask, before, edited))
    inside, outside = (confidences_of(context, one.subject.classifier, images) for images in parts)
    start, *acquired = (of_targets(said, maker.targets) for said in unedited)
    found = answers(
        start,
        of_targets(inside, maker.targets),
        of_targets(outside, maker.targets),
        torch.stack(acquired) if acquired else None,
    )
    area = mask.flatten(1).double().mean(1)
    known = (area > 0) & (area < 1) & ~maker.wrong & ~one.wrong
    return Answers(*(torch.where(known, part, torch.nan) for part in (found.inside, found.rest, found.acquired)))
