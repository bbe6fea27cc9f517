"""What every model answers to the edits made on its images, inside the region of the class and outside."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from audit.metrics.response import Answers, answers, together
from audit.pipeline.answers import confidences_of, of_targets
from audit.pipeline.context import Context
from audit.pipeline.explain import Explained
from audit.pipeline.reference import Reference
from audit.results import MAIN_REGION
from audit.runtime.progress import stage_progress


def responses(context: Context, explained: Sequence[Explained], reference: Reference) -> Mapping[str, Answers]:
    """Return by the name of a model its answers to the edits of all models on the same images, its own among them.

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
            before = confidences_of(context, one.subject.classifier, shown.inversions)
            heard = [_answers(context, one, maker, shown, before) for maker in makers]
            found[one.subject.name] = together(heard)
            advance()
    return found


def _answers(context: Context, one: Explained, maker: Explained, reference: Reference, before: Tensor) -> Answers:
    """Answers of a model, whose probabilities for the inversions are `before` `[N, K]`, to the edits made for `maker`.

    NaN where there is no region or the edit is not asked about.
    """
    mask, unedited, edited = reference.regions[MAIN_REGION][:, None], reference.inversions, maker.counterfactuals.images
    parts = (torch.where(mask, edited, unedited), torch.where(mask, unedited, edited))
    after = (confidences_of(context, one.subject.classifier, images) for images in parts)
    found = answers(*(of_targets(said, maker.targets) for said in (before, *after)))
    area = mask.flatten(1).double().mean(1)
    known = (area > 0) & (area < 1) & ~maker.wrong & ~one.wrong
    return Answers(*(torch.where(known, answer, torch.nan) for answer in (found.inside, found.outside)))
