"""What every model answers to the edits made for the others, inside the region of the class and outside."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from audit.metrics.response import Answers, answers, together
from audit.pipeline.answers import confidences_of
from audit.pipeline.context import Context
from audit.pipeline.explain import Explained
from audit.pipeline.reference import Reference
from audit.results import MAIN_REGION
from audit.runtime.progress import stage_progress

NO_REGION = "the data give no region (mask or box) for the query images"
ALONE = "no other model is explained on the same images"


def responses(context: Context, explained: Sequence[Explained], reference: Reference) -> Mapping[str, Answers | str]:
    """Return by the name of a model its answers to the edits of the models on the same images, or why there are none.

    Of edits towards the class that an image belongs to, as those of misclassified images are, nothing is asked.
    """
    if MAIN_REGION not in reference.regions:
        return {one.subject.name: NO_REGION for one in explained}
    found: dict[str, Answers | str] = {}
    with stage_progress("answers to the edits of others", len(explained)) as advance:
        for one in explained:
            others = [each for each in explained if each is not one and _same_images(each, one)]
            heard = [_answers(context, one, maker, reference.of(one.queries)) for maker in others]
            found[one.subject.name] = together(heard) if heard else ALONE
            advance()
    return found


def _same_images(one: Explained, other: Explained) -> bool:
    return torch.equal(one.queries.positions, other.queries.positions)


def _answers(context: Context, one: Explained, maker: Explained, reference: Reference) -> Answers:
    """Answers of a model to the edits made for `maker`; NaN where there is no region or the edit is not asked about."""
    mask, before, edited = reference.regions[MAIN_REGION][:, None], reference.inversions, maker.counterfactuals.images
    shown = (before, torch.where(mask, edited, before), torch.where(mask, before, edited))
    said = [_of(confidences_of(context, one.subject.classifier, images), maker.targets) for images in shown]
    found = answers(*said)
    area = mask.flatten(1).double().mean(1)
    known = (area > 0) & (area < 1) & ~maker.wrong & ~one.wrong
    return Answers(*(torch.where(known, answer, torch.nan) for answer in (found.inside, found.outside)))


def _of(confidences: Tensor, targets: Tensor) -> Tensor:
    return confidences.gather(1, targets[:, None])[:, 0]
