"""The method `latent-shift`: one straight step in the generator's codes, as long as it has to be.

Source: gifsplanation (Cohen et al. 2021, arXiv 2102.09475, eq. 1): `G(w + lambda df/dw)` with the gradient at the code
of the image alone. f is the target's log-odds, whose gradient does not vanish where the classifier is sure; lambda is
the smallest that reaches the operating point, between the lengths of a rising grid by bisection.
"""

import torch
from torch import Tensor

from audit.config import CounterfactualConfig
from audit.counterfactual.answers import chosen
from audit.counterfactual.batches import Batch
from audit.counterfactual.descent import code_unit, shortfall
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, SearchNetworks
from audit.runtime.progress import Advance

LENGTHS = tuple(2 ** (half / 2) for half in range(-12, 5))
"""Root mean square lengths of the shift that are tried in turn, in units of the spread of random codes: 1/64 to 4."""
BISECTIONS = 8


def edit(
    settings: CounterfactualConfig,
    subject: CalibratedClassifier,
    networks: SearchNetworks,
    batch: Batch,
    advance: Advance,
) -> Counterfactuals:
    """Draw the counterfactuals of one batch; no key of `settings` has a part in them."""
    classifier, generator, iterates = subject.classifier, networks.generator, batch.iterates()
    codes = batch.pivots.clone().requires_grad_()
    with torch.enable_grad():
        logits = classifier(generator.images(codes, deltas=batch.deltas))
        (gradient,) = torch.autograd.grad(-shortfall(logits, batch.targets, batch.goals).sum(), codes)
    size = gradient.flatten(1).square().mean(dim=1).sqrt().clamp_min(torch.finfo(gradient.dtype).tiny)
    direction = gradient / size.view(-1, 1, 1) * code_unit(generator)

    @torch.no_grad()
    def reaches(length: Tensor) -> Tensor:
        latents = batch.pivots + length.view(-1, 1, 1) * direction
        images = generator.images(latents, deltas=batch.deltas)
        advance(len(images) / (1 + len(LENGTHS) + BISECTIONS))
        return iterates.observe(images, latents, classifier(images))

    short = torch.zeros_like(batch.goals)
    found = reaches(short)
    enough = short.clone()
    for length in LENGTHS:
        tried = torch.full_like(short, length)
        now = reaches(tried)
        # An image that is not there yet goes on from here; one that never is stays at the longest shift.
        enough, short = torch.where(found, enough, tried), torch.where(found | now, short, tried)
        found = found | now
    for _ in range(BISECTIONS):
        middle = (short + enough) / 2
        now = reaches(middle)
        short, enough = torch.where(now, short, middle), torch.where(now, middle, enough)
    return chosen(iterates)
