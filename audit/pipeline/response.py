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
ALONE = "no other model is explained"


def responses(context: Context, explained: Sequence[Explained], reference: Reference) -> Mapping[str, Answers | str]:
    """Return by the name of a model its answers to the edits of the others on its images, or why there are none.

    A model that shares its images with no other is asked about the edits on theirs; of these only the mean is known,
    which it is given for each of its own images, so that a bootstrap over those does not redraw it. Of edits towards
    the class that an image belongs to, as those of misclassified images are, nothing is asked.
    """
    if MAIN_REGION not in reference.regions:
        return {one.subject.name: NO_REGION for one in explained}
    if len(explained) == 1:
        return {explained[0].subject.name: ALONE}
    found: dict[str, Answers | str] = {}
    with stage_progress("answers to the edits of others", len(explained)) as advance:
        for one in explained:
            makers = [each for each in explained if each is not one]
            beside = [each for each in makers if torch.equal(each.queries.positions, one.queries.positions)]
            if beside:
                found[one.subject.name] = together([_answers(context, one, maker, reference) for maker in beside])
            else:
                elsewhere = [_answers(context, one, maker, reference) for maker in makers]
                found[one.subject.name] = _spread(elsewhere, len(one.targets))
            advance()
    return found


def _spread(elsewhere: Sequence[Answers], n: int) -> Answers:
    """Spread the sums of what is answered to on other images over `n`."""
    inside, outside = (torch.cat(parts).nansum() / n for parts in zip(*map(_parts, elsewhere), strict=True))
    return Answers(inside.expand(n), outside.expand(n))


def _parts(answers: Answers) -> tuple[Tensor, Tensor]:
    return answers.inside, answers.outside


def _answers(context: Context, one: Explained, maker: Explained, reference: Reference) -> Answers:
    """Answers of a model to the edits made for `maker`; NaN where there is no region or the edit is not asked about."""
    seen = reference.of(maker.queries)
    mask, before, edited = seen.regions[MAIN_REGION][:, None], seen.inversions, maker.counterfactuals.images
    shown = (before, torch.where(mask, edited, before), torch.where(mask, before, edited))
    said = [_of(confidences_of(context, one.subject.classifier, images), maker.targets) for images in shown]
    found = answers(*said)
    area = mask.flatten(1).double().mean(1)
    wrong = one.subject.logits[maker.queries.positions].argmax(1) != maker.queries.labels
    known = (area > 0) & (area < 1) & ~maker.wrong & ~wrong
    return Answers(*(torch.where(known, answer, torch.nan) for answer in _parts(found)))


def _of(confidences: Tensor, targets: Tensor) -> Tensor:
    return confidences.gather(1, targets[:, None])[:, 0]
