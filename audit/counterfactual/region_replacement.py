"""The method `region-replacement`: parts of the image exchanged, one by one, for those of a real image of the target.

Source: SEDC-T (Vermeire et al. 2022, Pattern Analysis and Applications 25, algorithm 2): segments are replaced, each
time the one that raises the target's score most, until the class changes. Here the segments are the cells of a regular
grid, which any image has; the replacement is the same cell of the nearest real image of the target class, which is no
less real than the query; and it ends at the operating point that all methods are asked for.
"""

import torch
from torch import Tensor

from audit.classifiers.classifier import Classifier
from audit.config import CounterfactualConfig
from audit.counterfactual.answers import chosen, logits_of
from audit.counterfactual.batches import Batch
from audit.counterfactual.descent import shortfall
from audit.counterfactual.nearest_image import nearest_real
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, SearchNetworks
from audit.runtime.progress import Advance

GRID = 8
"""Cells along either side."""


@torch.no_grad()
def edit(
    settings: CounterfactualConfig,
    subject: CalibratedClassifier,
    networks: SearchNetworks,
    batch: Batch,
    advance: Advance,
) -> Counterfactuals:
    """Draw the counterfactuals of one batch; neither `settings` nor the generator has a part in them."""
    donors = nearest_real(subject, batch.inversions, batch.targets).to(batch.inversions)
    cells, iterates = grid(batch.inversions.shape[2:]).to(donors.device), batch.iterates()
    images, logits = batch.inversions, subject.classifier(batch.inversions)
    replaced = torch.zeros(len(images), len(cells), dtype=torch.bool, device=images.device)
    reached = iterates.observe(images, images, logits)  # an image is its own code
    advance(float(reached.sum()))
    while not bool((reached | replaced.all(dim=1)).all()):
        images, logits = images.clone(), logits.clone()
        for row in (~reached & ~replaced.all(dim=1)).nonzero()[:, 0].tolist():
            cell, images[row], logits[row] = _best_cell(
                subject.classifier, images[row], donors[row], cells[~replaced[row]], batch.targets[row]
            )
            replaced[row, (~replaced[row]).nonzero()[cell, 0]] = True
        now = iterates.observe(images, images, logits)
        advance(float((now & ~reached).sum()))
        reached = reached | now
    advance(len(images) - float(reached.sum()))
    return chosen(iterates, in_latent_space=False)


def grid(size: torch.Size) -> Tensor:
    """Return the cells of images of `size` (height, width) as masks, bool `[cells, H, W]`; none of them is empty."""
    down, across = (torch.arange(side) * min(GRID, side) // side for side in size)
    number = down[:, None] * (int(across.max()) + 1) + across
    return number == torch.arange(int(number.max()) + 1)[:, None, None]


def _best_cell(
    classifier: Classifier, image: Tensor, donor: Tensor, cells: Tensor, target: Tensor
) -> tuple[int, Tensor, Tensor]:
    """Return the place among `cells` of the replacement that convinces most of `target`, its image and its logits."""
    tried = torch.where(cells[:, None], donor, image)
    logits = logits_of(classifier, tried).to(image.device)
    best = int(shortfall(logits, target.expand(len(cells)), logits.new_zeros(len(cells))).argmin())
    return best, tried[best], logits[best]
