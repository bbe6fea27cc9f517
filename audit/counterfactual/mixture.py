"""Gaussian mixtures of many features at once: univariate EM, vectorised over the features (Litsos 2025 §5.3.1).

Features are taken as independent, so a class with d features needs d one-dimensional mixtures. All are fitted together,
in float64 and in units of each feature's own standard deviation, which makes the fit equivariant to a rescaling of the
network. scikit-learn's `GaussianMixture` is the reference: same updates, same stopping rule, same regularisation
(there absolute, here relative to the feature's variance).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

RELATIVE_REGULARISATION = 1e-6
"""Added to every component's variance, as a share of the feature's variance (scikit-learn: `reg_covar`)."""
FLOAT32_RESOLUTION = 2.0**-23
"""Activations arrive as float32: a spread below this share of their size is rounding, not signal."""
ABSOLUTE_TINY = 1e-30
"""Scale of a feature that is zero on every image."""
CHUNK_ELEMENTS = 4_000_000
"""Responsibilities held at a time (images x features x components): 32 MB in float64."""


@dataclass(frozen=True)
class Mixture:
    """One mixture of K Gaussians per feature, float64 on the CPU: `weights`, `means`, `variances`, all `[d, K]`."""

    weights: Tensor
    means: Tensor
    variances: Tensor

    @property
    def expected(self) -> Tensor:
        """Mean of each feature, `[d]`."""
        return (self.weights * self.means).sum(dim=1)

    def tails(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `F(x)` and `1 - F(x)`, each `[N, d]`, for `x [N, d]`; both are exact far out in their tail."""
        z = (x.double().unsqueeze(-1) - self.means) / self.variances.sqrt()
        # erfc keeps its digits far out, where 1 + erf (and torch.special.ndtr) rounds to zero.
        lower = 0.5 * (self.weights * torch.special.erfc(-z * math.sqrt(0.5))).sum(dim=-1)
        upper = 0.5 * (self.weights * torch.special.erfc(z * math.sqrt(0.5))).sum(dim=-1)
        return lower.clamp(0, 1), upper.clamp(0, 1)

    def probability(self, x: Tensor) -> Tensor:
        """Two-tailed probability `min(F, 1 - F)` in [0, 0.5], `[N, d]` (Litsos 2025, §5.3.2)."""
        lower, upper = self.tails(x)
        return torch.minimum(lower, upper).clamp(max=0.5)

    def is_high(self, x: Tensor, threshold: float) -> Tensor:
        """Whether each value lies in the upper half, bool `[N, d]`; `threshold` does not matter for a mixture."""
        lower, upper = self.tails(x)
        return upper < lower

    def log_likelihood(self, x: Tensor) -> Tensor:
        """Mean log density of each feature over the rows of `x [N, d]`, `[d]`."""
        z = (x.double().unsqueeze(-1) - self.means) ** 2 / self.variances
        log_joint = self.weights.log() - 0.5 * (z + self.variances.log() + math.log(2 * math.pi))
        return log_joint.logsumexp(dim=-1).mean(dim=0)


def fit_mixture(x: Tensor, components: int = 5, tolerance: float = 1e-4, max_steps: int = 200) -> Mixture:
    """Fit every column of `x [n, d]` by EM from equal-count blocks of the sorted values; deterministic.

    A column stops when its mean log-likelihood changes by less than `tolerance` (scikit-learn's rule, ten times tighter
    by default). Constant columns give a narrow mixture round their value, never NaN. `x` must be finite and not empty.
    """
    x = x.detach().cpu().double()
    n = len(x)
    centre = x.mean(dim=0)
    scale = x.std(dim=0, unbiased=False)
    scale = torch.maximum(scale, x.abs().amax(dim=0) * FLOAT32_RESOLUTION).clamp_min(ABSOLUTE_TINY)
    standard = (x - centre) / scale
    width = max(1, CHUNK_ELEMENTS // (n * components))
    parts = [
        expectation_maximisation(chunk, *initial_parameters(chunk, components), tolerance, max_steps)
        for chunk in standard.split(width, dim=1)
    ]
    weights, means, variances = (torch.cat(part) for part in zip(*parts, strict=True))
    return Mixture(weights, means * scale[:, None] + centre[:, None], variances * scale[:, None] ** 2)


def initial_parameters(x: Tensor, components: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, means and variances `[d, K]` of K equal-count blocks of each sorted column of `x [n, d]`."""
    n, d = x.shape
    block = (torch.arange(n) * components) // n
    responsibilities = torch.nn.functional.one_hot(block, components).to(x.dtype)
    return _maximise(_powers(x.sort(dim=0).values), responsibilities.expand(d, n, components))


def expectation_maximisation(
    x: Tensor, weights: Tensor, means: Tensor, variances: Tensor, tolerance: float = 1e-4, max_steps: int = 200
) -> tuple[Tensor, Tensor, Tensor]:
    """Run EM on the columns of `x [n, d]` (unit variance) from the parameters `[d, K]`; converged columns drop out."""
    weights, means, variances = weights.clone(), means.clone(), variances.clone()
    powers = _powers(x)
    active = torch.arange(x.shape[1])
    previous = torch.full((x.shape[1],), -math.inf, dtype=x.dtype)
    for _ in range(max_steps):
        log_joint = torch.bmm(powers, _coefficients(weights[active], means[active], variances[active]))
        # One exponential serves both the likelihood and the responsibilities; it is what the fit spends its time on.
        largest = log_joint.amax(dim=-1, keepdim=True)
        joint = log_joint.sub_(largest).exp_()
        total = joint.sum(dim=-1, keepdim=True)
        weights[active], means[active], variances[active] = _maximise(powers, joint.div_(total))
        likelihood = (largest + total.log()).squeeze(-1).mean(dim=1)
        moving = (likelihood - previous[active]).abs() >= tolerance
        previous[active] = likelihood
        if not moving.all():
            active, powers = active[moving], powers[moving]
        if len(active) == 0:
            break
    return weights, means, variances


def _powers(x: Tensor) -> Tensor:
    """Return `(1, x, x^2)` of every value of `x [n, d]`, `[d, n, 3]`: all that EM needs to know of the data."""
    columns = x.T
    return torch.stack((torch.ones_like(columns), columns, columns**2), dim=-1)


def _coefficients(weights: Tensor, means: Tensor, variances: Tensor) -> Tensor:
    """Return `[d, 3, K]` such that `(1, x, x^2)` times it is `log(pi_k N(x | mu_k, var_k))`."""
    constant = weights.log() - 0.5 * (variances.log() + math.log(2 * math.pi) + means**2 / variances)
    return torch.stack((constant, means / variances, -0.5 / variances), dim=1)


def _maximise(powers: Tensor, responsibilities: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """M-step: weights, means, variances `[d, K]` from `(1, x, x^2) [d, n, 3]` and responsibilities `[d, n, K]`."""
    count, first, second = torch.bmm(responsibilities.transpose(1, 2), powers).unbind(dim=-1)
    # A component that lost all its images keeps a vanishing weight instead of dividing by zero (as scikit-learn does).
    count = count + 10 * torch.finfo(powers.dtype).eps
    means = first / count
    variances = (second / count - means**2).clamp_min(0) + RELATIVE_REGULARISATION
    return count / count.sum(dim=1, keepdim=True), means, variances
