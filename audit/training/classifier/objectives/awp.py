"""TRADES with adversarial weight perturbation (Wu et al. 2020, eq. 8 to 10 and algorithm 1).

The loss is lowered not at the weights w but at the worst weights near them, w + v, which flattens the loss around w.
The perturbed network is a functional call on `w + v`: since v is a constant there, the gradient at w + v arrives at w
by itself, and the model's own weights are never written to, not even when a step fails half-way.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from audit.training.classifier.objectives.adversarial import Trades


def weight_perturbation(
    model: nn.Module, loss: Callable[[Callable[[Tensor], Tensor]], Tensor], gamma: float, device: torch.device
) -> dict[str, Tensor]:
    """Return v by parameter name: one ascent step of `loss` of relative length `gamma` in every layer.

    `v = gamma * ||w|| * g / ||g||` for the gradient g of each trained weight w with more than one dimension; biases
    and normalisation scales are left alone. `loss` maps a forward function to a scalar. The pass is made in the
    model's own mode on copies of its buffers, so that batch statistics are not counted twice, and with a copy of the
    global RNG, so that v is taken for the same dropout that the next pass will draw.
    """
    weights = {
        name: parameter.detach().requires_grad_(True)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.ndim > 1
    }
    tensors = {**weights, **{name: buffer.clone() for name, buffer in model.named_buffers()}}
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        value = loss(lambda images: functional_call(model, tensors, (images,)))
    gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
    perturbation = {}
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        if gradient is None:
            continue
        length = gradient.norm()
        scale = torch.where(length > 0, gamma * weight.detach().norm() / length.clamp_min(1e-30), 0)
        perturbation[name] = scale * gradient
    return perturbation


@dataclass(frozen=True, kw_only=True)
class AwpTrades(Trades):
    """AWP-TRADES: the TRADES loss at the weights that one step of relative length `gamma` makes worst.

    The attacked images are found at the unperturbed weights. During the share `warmup` of the training it is TRADES:
    weights that have not learned anything yet are only held back by a perturbation.
    """

    gamma: float = 0.005
    warmup: float = 0.1

    def __call__(
        self, model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator, progress: float = 1.0
    ) -> Tensor:
        attacked = self.attack(model, images, generator, progress)
        if progress < self.warmup:
            return self.outer(model, images, attacked, labels)
        perturbation = weight_perturbation(
            model, lambda forward: self.outer(forward, images, attacked, labels), self.gamma, images.device
        )
        parameters = dict(model.named_parameters())
        moved = {name: parameters[name] + change for name, change in perturbation.items()}
        return self.outer(lambda batch: functional_call(model, moved, (batch,)), images, attacked, labels)
