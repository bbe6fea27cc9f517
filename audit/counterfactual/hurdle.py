"""Hurdle model of rectified features: off with probability 1 - theta, else normal, gamma or exponential.

Source: PIECE (Kenny and Keane 2021), Litsos 2025 §5.1.1, eqs. 5.1.7-5.1.11. The three families are fitted by maximum
likelihood and the one with the best Kolmogorov-Smirnov p-value is kept. For one feature all three are tested on the
same number of values, where the p-value falls strictly with the statistic: the smallest statistic is the largest
p-value, also where the p-values themselves underflow.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor

FAMILIES = ("normal", "gamma", "exponential")
FLOAT32_RESOLUTION = 2.0**-23
"""A spread below this share of the activation's size is rounding, not signal."""
ABSOLUTE_TINY = 1e-30
MAX_SHAPE = 1e12
"""Largest gamma shape: beyond it the spread is below float32 resolution."""


@dataclass(frozen=True)
class Hurdle:
    """One hurdle model per feature, float64 on the CPU, all `[d]`.

    `theta` is the probability of being active (not exactly zero); `family` indexes FAMILIES; `location` and `scale` are
    mean and standard deviation (normal), shape and scale (gamma), or unused and mean (exponential).
    """

    theta: Tensor
    family: Tensor
    location: Tensor
    scale: Tensor

    @property
    def expected(self) -> Tensor:
        """Mean of each feature with the zeros counted in, `[d]`."""
        active = torch.stack((self.location, self.location * self.scale, self.scale))
        return self.theta * active.gather(0, self.family[None])[0]

    def active_cdf(self, x: Tensor) -> Tensor:
        """CDF of the active part at `x [N, d]`, `[N, d]`."""
        values = x.double().cpu().numpy()
        location, scale = self.location.numpy(), self.scale.numpy()
        families = np.stack([_cdf(name, values, location, scale) for name in FAMILIES])
        return torch.from_numpy(families).gather(0, self.family.expand(1, *x.shape))[0]

    def tails(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the probabilities of at most and of at least `x [N, d]` on its side of the point mass, each `[N, d]`.

        Active: theta F(x) and theta (1 - F(x)), so that below a threshold they are eqs. 5.1.10 and 5.1.11. Exactly
        zero: 1 - theta (eq. 5.1.8) and 1.
        """
        active = x != 0
        lower = self.theta * self.active_cdf(x)
        upper = self.theta - lower
        off = (1 - self.theta).expand_as(lower)
        return torch.where(active, lower, off), torch.where(active, upper, torch.ones_like(upper))

    def probability(self, x: Tensor) -> Tensor:
        """Two-tailed probability in [0, 0.5], `[N, d]`; below t exactly where one of eqs. 5.1.8-5.1.11 holds for t."""
        lower, upper = self.tails(x)
        return torch.minimum(lower, upper).clamp(0, 0.5)

    def is_high(self, x: Tensor, threshold: float) -> Tensor:
        """Whether each value is high for the class, bool `[N, d]`.

        A feature that is on although it is on with a probability below `threshold` (eq. 5.1.9) is high, however small.
        """
        lower, upper = self.tails(x)
        seldom_on = (self.theta < threshold) & (x != 0)
        return torch.where(seldom_on, x > 0, upper < lower)


def fit_hurdle(x: Tensor) -> Hurdle:
    """Fit every column of `x [n, d]` (finite; gamma and exponential only where no value is negative); deterministic."""
    values = x.detach().cpu().double().numpy()
    active = values != 0
    count = active.sum(axis=0)
    theta = count / len(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(count > 0, values.sum(axis=0) / count, 0.0)
        variance = np.where(count > 0, np.where(active, (values - mean) ** 2, 0).sum(axis=0) / count, 0.0)
        log_mean = np.where(active, np.log(np.abs(np.where(active, values, 1.0))), 0).sum(axis=0) / count
        gap = np.log(np.abs(mean)) - log_mean
    floor = np.maximum(np.abs(values).max(axis=0) * FLOAT32_RESOLUTION, ABSOLUTE_TINY)
    deviation = np.maximum(np.sqrt(variance), floor)
    positive = (values >= 0).all(axis=0) & (count > 0)
    shape = np.where(positive, gamma_shape(np.where(positive, gap, 1.0)), 1.0)
    location = np.stack((mean, shape, np.zeros_like(mean)))
    scale = np.stack((deviation, np.where(positive, mean / shape, 1.0), np.where(positive, mean, 1.0)))
    statistics = np.stack(
        [_kolmogorov_smirnov(values, active, name, location[i], scale[i]) for i, name in enumerate(FAMILIES)]
    )
    statistics[1:, ~positive] = np.inf
    best = statistics.argmin(axis=0)
    chosen = (best, np.arange(values.shape[1]))
    return Hurdle(
        theta=torch.from_numpy(theta),
        family=torch.from_numpy(best),
        location=torch.from_numpy(location[chosen]),
        scale=torch.from_numpy(scale[chosen]),
    )


def gamma_shape(gap: np.ndarray) -> np.ndarray:
    """Maximum-likelihood shape k of gamma distributions from `gap = log(mean) - mean(log)`: log k - digamma(k) = gap.

    Minka's start (2002) and Newton steps on 1/k, which converge in a few rounds from any start of that form.
    """
    gap = np.maximum(gap, 0.5 / MAX_SHAPE)
    shape = (3 - gap + np.sqrt((gap - 3) ** 2 + 24 * gap)) / (12 * gap)
    for _ in range(8):
        residual = np.log(shape) - special.digamma(shape) - gap
        slope = 1 / shape - special.polygamma(1, shape)
        # 1/k carries the error of `slope`, a difference of nearly equal numbers, far better than k does.
        inverse = 1 / shape + residual / (shape**2 * slope)
        shape = np.clip(1 / np.maximum(inverse, 1 / MAX_SHAPE), 1e-6, MAX_SHAPE)
    return shape


def _cdf(family: str, x: np.ndarray, location: np.ndarray, scale: np.ndarray) -> np.ndarray:
    if family == "normal":
        return special.ndtr((x - location) / scale)
    positive = np.maximum(x, 0) / scale
    if family == "gamma":
        return special.gammainc(location, positive)
    return -np.expm1(-positive)


def _kolmogorov_smirnov(
    x: np.ndarray, active: np.ndarray, family: str, location: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Two-sided statistic of the active values of each column of `x [n, d]` against a family, `[d]`."""
    ordered = np.sort(np.where(active, x, np.inf), axis=0)
    count = active.sum(axis=0)
    rank = np.arange(len(x))[:, None]
    inside = rank < count
    with np.errstate(divide="ignore", invalid="ignore"):
        cdf = _cdf(family, np.where(inside, ordered, 1.0), location, scale)
        gap = np.maximum((rank + 1) / count - cdf, cdf - rank / count)
    return np.where(inside, gap, -np.inf).max(axis=0)
