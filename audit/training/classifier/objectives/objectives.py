"""The objective that a configuration asks for. Each is a callable (model, images, labels, generator, progress) -> loss.

All draw from the given generator only, and their inner maximisation leaves the model's mode, its batch statistics and
the global RNG as they were.
"""

from typing import Any

import torch
from torch import Tensor

from audit.config import eps_value
from audit.errors import ConfigError
from audit.training.classifier.config import ObjectiveConfig
from audit.training.classifier.objectives.adversarial import Mart, PgdTraining, Trades
from audit.training.classifier.objectives.ald import AdversarialLocalDistribution
from audit.training.classifier.objectives.awp import AwpTrades
from audit.training.classifier.objectives.cross_entropy import CrossEntropy, Objective
from audit.training.classifier.objectives.vat import VirtualAdversarial

ALD_WEIGHTS = {"pgd": 1.0, "trades": 6.0}
"""Lambda of eq. 5.15 by base, as in section 5.5.3 of the thesis that describes ALD."""


def clean_loss_of(config: ObjectiveConfig, class_counts: Tensor) -> CrossEntropy:
    """Return the cross-entropy with the configured smoothing and class weights; raises ConfigError on a wrong count."""
    weights = None
    if config.class_weights == "balanced":
        weights = class_counts.sum() / (len(class_counts) * class_counts.clamp_min(1)).float()
    elif config.class_weights is not None:
        if len(config.class_weights) != len(class_counts):
            raise ConfigError(
                f"objective.class_weights has {len(config.class_weights)} values for {len(class_counts)} classes: give "
                "one per class in label order, or 'balanced'."
            )
        weights = torch.tensor([float(w) for w in config.class_weights])
    return CrossEntropy(config.label_smoothing, weights)


def objective_of(config: ObjectiveConfig, class_counts: Tensor) -> Objective:
    """Return the objective the configuration asks for; `class_counts` `[K]` serve balanced class weights.

    Raises ConfigError if the class weights are not one per class.
    """
    clean_loss = clean_loss_of(config, class_counts)
    if config.kind == "plain":
        return clean_loss
    if config.vat is not None:
        return VirtualAdversarial(
            eps=eps_value(config.vat.eps),
            xi=config.vat.xi,
            iterations=config.vat.iterations,
            weight=config.vat.weight,
            ramp=config.ramp,
            clean_loss=clean_loss,
        )
    inner: dict[str, Any] = {
        "eps": eps_value(config.eps),
        "steps": config.steps,
        "step_size": config.step_size,
        "ramp": config.ramp,
        "norm": config.norm,
        "clean_loss": clean_loss,
    }
    if config.mart is not None:
        return Mart(**inner, weight=config.mart.weight)
    if config.awp is not None:
        return AwpTrades(**inner, beta=config.beta, gamma=config.awp.gamma, warmup=config.awp.warmup)
    if config.ald is not None:
        ald = config.ald
        return AdversarialLocalDistribution(
            **inner,
            base=ald.base,
            particles=ald.particles,
            bandwidth=ald.bandwidth,
            weight=ALD_WEIGHTS[ald.base] if ald.weight is None else ald.weight,
            clean_weight=ald.clean_weight,
        )
    return PgdTraining(**inner) if config.kind == "pgd-at" else Trades(**inner, beta=config.beta)
