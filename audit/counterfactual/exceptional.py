"""Exceptional features: which penultimate features are unusual for the target class, and what to expect instead.

Source: Litsos 2025 §5.1.1 and §5.3. Per class a distribution of every feature is fitted on the images that the model
*assigns* to the class. A feature of a query image is exceptional for class c' if its two-tailed probability under c' is
below a threshold; it is replaced by its mean under c' if it speaks against c' and the replacement speaks for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from audit.classifiers.classifier import Head
from audit.config import CounterfactualConfig
from audit.counterfactual.hurdle import fit_hurdle
from audit.counterfactual.mixture import fit_mixture
from audit.errors import ClassifierError
from audit.runtime.seeds import stage_generator

ZERO_SHARE = 0.05
"""Share of exact zeros among a class's activations above which `auto` takes the hurdle model."""
FIT_IMAGES = 4000
"""Most images a class is fitted on; beyond it a seeded subset, which bounds time and memory."""
SIGMA_FLOOR = 0.01
"""Smallest sigma, as a share of the root mean square sigma over the features."""


class FeatureDistribution(Protocol):
    """Independent distributions of d features under one class."""

    @property
    def expected(self) -> Tensor:
        """Mean of each feature, `[d]`."""
        ...

    def probability(self, x: Tensor) -> Tensor:
        """Two-tailed probability of `x [N, d]` in [0, 0.5], `[N, d]`."""
        ...

    def is_high(self, x: Tensor, threshold: float) -> Tensor:
        """Whether `x [N, d]` is high (else low) for the class, bool `[N, d]`."""
        ...


@dataclass(frozen=True)
class Calibration:
    """What one model's features look like: a distribution per class that edits leave or enter, a scale per feature.

    `sigma [d]` is the standard deviation over all calibration images, with a floor; `kinds` says by class whether a
    "mixture" or a "hurdle" model was fitted; `counts` how many images the model assigned to each class.
    """

    distributions: Mapping[int, FeatureDistribution]
    kinds: Mapping[int, str]
    counts: tuple[int, ...]
    sigma: Tensor
    threshold: float
    sign_filter: str


def fit_calibration(
    features: Tensor,
    predicted: Tensor,
    config: CounterfactualConfig,
    class_names: Sequence[str],
    seed: int,
    model: str = "",
    *,
    classes: Sequence[int] | None = None,
) -> Calibration:
    """Fit the distributions of `features [n, d]` per class that the model assigns (`predicted [n]`).

    `classes` are those that edits leave or enter (None: all), `model` is the classifier's name for error sentences.
    Raises ClassifierError for features that are not finite and where fewer than `config.min_calibration` images are
    assigned to one of the classes.
    """
    who = f"Classifier '{model}'" if model else "The classifier"
    features, predicted = features.detach().cpu(), predicted.cpu()
    if not torch.isfinite(features).all():
        raise ClassifierError(f"{who} gives features that are not finite on the calibration images: check its weights.")
    counts = torch.bincount(predicted, minlength=len(class_names)).tolist()
    classes = range(len(class_names)) if classes is None else classes
    for index in classes:
        if counts[index] < config.min_calibration:
            mend = (
                "give more calibration images or lower counterfactual.min_calibration."
                if counts[index]
                else "check the order of its classes and its mean and std, or leave the class out."
            )
            raise ClassifierError(
                f"{who} assigns {counts[index]} of {len(predicted)} calibration images to class "
                f"'{class_names[index]}' where {config.min_calibration} are needed to say what is usual for it: {mend}"
            )
    distributions: dict[int, FeatureDistribution] = {}
    kinds: dict[int, str] = {}
    for index in classes:
        rows = features[predicted == index]
        if len(rows) > FIT_IMAGES:
            generator = stage_generator(seed, f"calibration/{index}")
            rows = rows[torch.randperm(len(rows), generator=generator)[:FIT_IMAGES]]
        zeros = (rows == 0).double().mean().item()
        kind = config.features if config.features != "auto" else ("hurdle" if zeros > ZERO_SHARE else "mixture")
        kinds[index] = kind
        distributions[index] = fit_hurdle(rows) if kind == "hurdle" else fit_mixture(rows, config.mixture_components)
    return Calibration(
        distributions=distributions,
        kinds=kinds,
        counts=tuple(counts),
        sigma=feature_scale(features),
        threshold=config.exceptional_threshold,
        sign_filter=config.sign_filter,
    )


def feature_scale(features: Tensor) -> Tensor:
    """Standard deviation of each column of `features [n, d]`, float32 `[d]`, with a floor for dead features.

    The floor keeps a feature that never moved on real images from outweighing all others in the standardised loss.
    """
    variance = features.double().var(dim=0, unbiased=False)
    floor = SIGMA_FLOOR * variance.mean().sqrt()
    return torch.maximum(variance.sqrt(), floor).clamp_min(torch.finfo(torch.float32).tiny).float()


def expected_features(
    calibration: Calibration, head: Head, x: Tensor, source: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the counterfactual features `x' [N, d]`, and which were replaced, bool `[N, d]` (Litsos 2025, §5.3).

    `x [N, d]` are the query images' features, `source` and `target` classes `[N]`. The weight of the sign filter is
    `w[target] - w[source]` ("contrast") or `w[target]` ("target"); of a network without a linear head, w is the
    gradient of the logits by the features at each query. A replacement must also move the feature along that weight
    (Litsos 2025, §5.1.1, step 3: only if it brings the model closer to the target): under a very skewed distribution a
    value in the upper tail can still lie below the mean.
    """
    weights = head.weight.detach().cpu().double()
    values = x.detach().cpu().double()
    source, target = source.cpu(), target.cpu()
    weights = weights.expand(len(values), *weights.shape[-2:])
    rows = torch.arange(len(values))
    contrast = weights[rows, target]
    if calibration.sign_filter == "contrast":
        contrast = contrast - weights[rows, source]
    result = values.clone()
    replaced = torch.zeros_like(values, dtype=torch.bool)
    for index in target.unique().tolist():
        rows = target == index
        distribution = calibration.distributions[index]
        part, weight = values[rows], contrast[rows]
        exceptional = distribution.probability(part) < calibration.threshold
        against = torch.where(distribution.is_high(part, calibration.threshold), weight < 0, weight > 0)
        helps = weight * (distribution.expected - part) > 0
        replaced[rows] = exceptional & against & helps
        result[rows] = torch.where(replaced[rows], distribution.expected, part)
    return result.to(x), replaced.to(x.device)
