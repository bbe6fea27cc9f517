"""The method `latent-gradient`: descend in the generator's codes until the classifier is convinced, without features.

Source: REVISE (Joshi et al. 2019, arXiv 1907.09615, algorithm 1): gradient steps on a generative model's code along

    loss(f(G(w)), target) + lambda |G(w) - I|_1

from the code of the input. The loss is a hinge on the log-odds, which ends at the operating point that all methods are
asked for; lambda is fixed, so that images and models of another sensitivity stop at another depth.
"""

from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from audit.config import CounterfactualConfig
from audit.counterfactual.answers import chosen
from audit.counterfactual.balance import AIM
from audit.counterfactual.batches import Batch
from audit.counterfactual.descent import Iterate, descend, shortfall
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, SearchNetworks
from audit.runtime.progress import Advance

WEIGHT = 10.0
"""lambda of the mean absolute pixel change, beside a hinge in log-odds. At SPRUCE's 30 some images stay unconvinced."""

KINK = 1 / 255
"""Below this change of a pixel the L1 term is smooth: at the start all are 0, and rounding would choose their signs."""


def edit_loss(images: Tensor, logits: Tensor, batch: Batch) -> Tensor:
    """Return what is short of the goals plus the weighted mean change of the pixels, `[N]`."""
    change = smooth_l1_loss(images, batch.inversions, beta=KINK, reduction="none").flatten(1).mean(dim=1)
    return shortfall(logits, batch.targets, batch.goals + AIM).clamp_min(0) + WEIGHT * change


def edit(
    settings: CounterfactualConfig,
    subject: CalibratedClassifier,
    networks: SearchNetworks,
    batch: Batch,
    advance: Advance,
) -> Counterfactuals:
    """Draw the counterfactuals of one batch."""

    def loss(iterate: Iterate) -> Tensor:
        return edit_loss(iterate.images, iterate.logits, batch)

    iterates = batch.iterates()

    def watch(iterate: Iterate) -> None:
        iterates.observe(iterate.images, iterate.latents, iterate.logits)
        advance(len(batch.goals) / (settings.steps + 1))

    descend(subject.classifier, networks.generator, (batch.pivots, batch.deltas), settings, loss, watch)
    return chosen(iterates)
