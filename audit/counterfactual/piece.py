"""The method `piece`: exceptional features replaced by what is usual, and an image found for them.

Source: PIECE (Kenny and Keane 2021, AAAI; Litsos 2025, §5.1.1). Features that are improbable under the target class and
speak against it are replaced, the least probable first (step 3); z' = argmin |C(G(z)) - x'|^2 (eq. 5.1.12) draws the
result. The counterfactual rests on all replacements. The semifactual rests on those before the one by which the head
alone would leave the source class: it has come as far as it can in that order, and is drawn by a search of its own.
Here the search starts at the inversion's code, and among its iterates the counterfactual is chosen as for all methods.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from audit.classifiers.classifier import Head
from audit.config import CounterfactualConfig
from audit.counterfactual.answers import chosen
from audit.counterfactual.batches import Batch
from audit.counterfactual.descent import Iterate, descend
from audit.counterfactual.exceptional import expected_features
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, SearchNetworks
from audit.runtime.progress import Advance


def edit(
    settings: CounterfactualConfig,
    subject: CalibratedClassifier,
    networks: SearchNetworks,
    batch: Batch,
    advance: Advance,
) -> Counterfactuals:
    """Draw the counterfactuals of one batch."""
    classifier, calibration = subject.classifier, subject.calibration
    with torch.no_grad():
        x = classifier.features(batch.queries)
        head = classifier.head_at(batch.queries)
        expected, replaced = expected_features(calibration, head, x, batch.sources, batch.targets)
        aims = torch.where(replaced, expected, torch.nan)
        last = before_the_flip(subject, head, x, aims, batch.sources, batch.targets)
        flips = head(expected).argmax(dim=1) == batch.targets
    sigma = calibration.sigma.to(x)

    def distance(features: Tensor, aim: Tensor) -> Tensor:
        if settings.loss == "raw":
            return (features - aim).square().sum(dim=1)
        return ((features - aim) / sigma).square().mean(dim=1)

    def draw(aim: Tensor, watch: Callable[[Iterate, Tensor], object]) -> None:
        """Search for images with the features `aim`; tell each iterate and how far its features are from them."""

        def loss(drawn: Iterate) -> Tensor:
            return distance(drawn.features, aim)

        def watched(drawn: Iterate) -> None:
            advance(len(x) / 2 / (settings.steps + 1))
            watch(drawn, loss(drawn))

        descend(classifier, networks.generator, (batch.pivots, batch.deltas), settings, loss, watched)

    iterates = batch.iterates()
    draw(expected, lambda drawn, _: iterates.observe(drawn.images, drawn.latents, drawn.logits))
    semifactuals, nearest = batch.inversions.clone(), torch.full_like(batch.goals, torch.inf)

    def keep_nearest(drawn: Iterate, away: Tensor) -> None:
        nearer = (drawn.logits.argmax(dim=1) == batch.sources) & (away < nearest)
        semifactuals[nearer], nearest[nearer] = drawn.images[nearer], away[nearer]

    draw(last, keep_nearest)
    return replace(chosen(iterates), semifactuals=semifactuals.cpu(), feature_target_flips=flips.cpu())


def before_the_flip(
    subject: CalibratedClassifier, head: Head, x: Tensor, replacements: Tensor, sources: Tensor, targets: Tensor
) -> Tensor:
    """Return `x [N, d]` with the most replacements, in order, with which `head` still decides for `sources [N]`.

    `replacements [N, d]` are NaN where a feature is kept. The order is that of the probabilities under `targets [N]`.
    """
    exceptional = ~replacements.isnan()
    order = torch.where(exceptional, _probabilities(subject, x, targets), torch.inf).argsort(dim=1, stable=True)
    rows, current, result = torch.arange(len(x), device=x.device), x.clone(), x.clone()
    staying = torch.ones_like(sources, dtype=torch.bool)
    for place in range(int(exceptional.sum(dim=1).max()) if len(x) else 0):
        column = order[:, place]
        more = staying & exceptional[rows, column]
        current[rows[more], column[more]] = replacements[rows[more], column[more]]
        staying &= head(current).argmax(dim=1) == sources
        result = torch.where((more & staying)[:, None], current, result)
    return result


def _probabilities(subject: CalibratedClassifier, x: Tensor, targets: Tensor) -> Tensor:
    values, found = x.cpu().double(), torch.zeros_like(x)
    for index in targets.unique().tolist():
        rows = targets == index
        found[rows] = subject.calibration.distributions[index].probability(values[rows.cpu()]).to(x)
    return found
