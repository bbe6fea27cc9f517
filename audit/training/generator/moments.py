"""Mean and covariance of features, of real images and of those that a generator draws, and the gap between them.

In a batch, which is all that a discriminator sees, a mean that is off by a few hundredths of a deviation is lost in
noise, but it decides Frechet distances. Moments that run over many batches show it. Source: Mroueh, Sercu and Goel,
"McGan: Mean and Covariance Feature Matching GAN" (2017), for the two terms; Heusel et al. 2017 for the distance that
weighs them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SHRUNK = 1e-12


def moments(batches: Iterable[Tensor]) -> tuple[Tensor, Tensor, int]:
    """Mean `[d]`, covariance `[d, d]` and number of the rows of all `batches` `[n, d]`, in float64 on the CPU.

    One pass, and no more in memory than a batch (Chan, Golub and LeVeque 1983).
    """
    count, mean, scatter = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for batch in batches:
        rows = batch.double().cpu()
        own, n = rows.mean(0), len(rows)
        centred, apart = rows - own, own - mean
        scatter = scatter + centred.T @ centred + torch.outer(apart, apart) * (count * n / (count + n))
        mean = mean + apart * (n / (count + n))
        count += n
    return mean, scatter / max(count - 1, 1), count


@dataclass(frozen=True)
class Target:
    """Moments of real images, and the units in which gaps are told: deviations along the principal directions.

    `mean` `[d]` of the features, `transform` `[d, k]` to those units and `covariance` `[k, k]` in them, float32;
    `sizes` say how many of the k directions every network has.
    """

    mean: Tensor
    transform: Tensor
    covariance: Tensor
    sizes: tuple[int, ...]

    @staticmethod
    def of(mean: Tensor, covariance: Tensor, sizes: Sequence[int], least_share: float) -> "Target":
        """Take moments of features side by side, `sizes` of every network's, each in its own principal directions.

        Left out are those with less variance than `least_share` of the network's largest. A network whose features
        do not vary has none.
        """
        blocks, start = [], 0
        for size in sizes:
            part = slice(start, start := start + size)
            variances, directions = torch.linalg.eigh(covariance[part, part])
            kept = variances > max(least_share * float(variances[-1]), SHRUNK)
            blocks.append(directions[:, kept] / variances[kept].sqrt())
        transform = torch.block_diag(*blocks)
        kept_sizes = tuple(block.shape[1] for block in blocks)
        return Target(mean.float(), transform.float(), (transform.T @ covariance @ transform).float(), kept_sizes)

    def units(self, features: Tensor) -> Tensor:
        """Features `[n, d]` in units of the real ones' deviations: `[n, k]`."""
        return (features - self.mean) @ self.transform

    def to(self, device: torch.device) -> "Target":
        """Move to `device`."""
        moved = (self.mean.to(device), self.transform.to(device), self.covariance.to(device))
        return Target(*moved, self.sizes)


def gap(mean: Tensor, covariance: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Frechet distance to second order, from means `[k]` and from covariances `[k, k]`, in the target's units.

    Where the target is the identity, tr(S + I - 2 S^(1/2)) = |S - I|^2 / 4 + O(|S - I|^3).
    """
    return mean.square().sum(), (covariance - target).square().sum() / 4


def gap_loss(drawn: Tensor, mean: Tensor, covariance: Tensor, target: Tensor) -> Tensor:
    """Scalar whose gradient at `drawn` `[n, k]` is that of `gap`, as if the images moved as the batch does.

    `mean` and `covariance` are those of many drawn images, which a batch's own would be too noisy for.
    """
    centred = drawn - mean
    along = (centred @ (covariance - target)).detach()
    return 2 * (drawn @ mean).mean() + (along * drawn).sum(1).mean()


def follow(drawn: Tensor, mean: Tensor, covariance: Tensor, share: float) -> None:
    """Move running moments towards those of `drawn` `[n, k]` by `share`, in place."""
    mean.lerp_(drawn.mean(0), share)
    centred = drawn - mean
    covariance.lerp_(centred.T @ centred / len(drawn), share)
