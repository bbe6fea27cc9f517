"""The method `nearest-image`: no edit at all, but the real image of the target class that is most like the query.

Known from case-based explanation as the nearest unlike neighbour (Keane and Smyth 2020, arXiv 2005.13997, section 3).
Its realism is perfect and its change as large as that between two patients: the scale on which edits are small.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from audit.counterfactual.answers import judged, logits_of
from audit.counterfactual.iterates import goal_of, log_odds
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, InvertedQueries, SearchNetworks
from audit.errors import MethodError
from audit.runtime.progress import Advance

AT_ONCE = 256
"""Real images read together."""


@dataclass(frozen=True)
class NearestImage:
    """The method; nothing of it can be set."""

    def explain(
        self,
        subject: CalibratedClassifier,
        networks: SearchNetworks,
        queries: InvertedQueries,
        targets: Tensor,
        advance: Advance,
    ) -> Counterfactuals:
        """Return for every query image the nearest real one of its class of `targets [N]`; nothing is drawn.

        Raises MethodError where there is no real image of a target class.
        """
        found = nearest_real(subject, queries.inversion.images, targets)
        advance(len(targets))
        return judged(subject, queries, targets, found)


def nearest_real(subject: CalibratedClassifier, images: Tensor, targets: Tensor) -> Tensor:
    """Return the nearest calibration images `[N, C, H, W]` to `images` that are of the classes `targets [N]`.

    In mean absolute difference, among those that the classifier finds as convincing as the operating point asks for; if
    there are none, among those that it assigns to the class, or among all. Raises MethodError where a class has none.
    """
    images, targets = images.detach().cpu(), targets.cpu()
    goals = goal_of(subject.operating_point.cpu(), targets)
    found, best = images.clone(), torch.full((len(images),), -torch.inf)
    for real, labels, _ in () if subject.real is None else subject.real.batches(AT_ONCE):
        logits = logits_of(subject.classifier, real)
        for target in targets.unique().tolist():
            rows, there = (targets == target).nonzero()[:, 0], (labels == target).nonzero()[:, 0]
            if len(there) == 0:
                continue
            pixels, convincing = real[there], log_odds(logits[there], torch.full_like(there, target))
            level = (logits[there].argmax(dim=1) == target).float()
            level = level + level * (convincing >= goals[rows[0]])
            # Differences are at most 1, so that a nearer image of a lower level never wins.
            away = torch.cdist(images[rows].flatten(1), pixels.flatten(1), p=1) / images[0].numel()
            score, place = (2 * level - away).max(dim=1)
            better = score > best[rows]
            found[rows[better]], best[rows[better]] = pixels[place[better]], score[better]
    if not bool(best.isfinite().all()):
        missing = subject.classifier.class_names[int(targets[~best.isfinite()][0])]
        raise MethodError(
            f"The calibration images hold none of class '{missing}' to take a counterfactual from: add some, or leave "
            "out the methods that need real images."
        )
    return found
