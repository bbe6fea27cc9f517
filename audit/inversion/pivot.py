"""Optimisation of pivots in W+: one common move of all layers and small offsets per layer, held near W.

Source: Litsos 2025 equation 5.5.7 (optimisation of the pivot), Tov et al., "Designing an Encoder for StyleGAN Image
Manipulation" (2021), sections 3-4: codes near W can be edited, so the offsets between layers are penalised, and so
is a code further from the mean than random codes are.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from audit.inversion.adam import RowAdam, cosine
from audit.inversion.inverter import Inverter
from audit.inversion.loss import Targets, distance


def distance_to_w(ws: Tensor, mean: Tensor, unit: float) -> Tensor:
    """How far codes `[N, L, w]` are out of W, `[N]`, in squared units of the spread of random codes.

    Mean square of the offsets between layers, plus the mean square of the common code beyond what random codes have.
    """
    common = ws.mean(1)
    offsets = (ws - common[:, None]).square().mean((1, 2))
    excess = (common - mean).square().mean(1) / unit**2 - 1
    return offsets / unit**2 + excess.clamp_min(0)


def optimise_pivots(
    inverter: Inverter,
    start: Tensor,
    targets: Targets,
    unit: float,
    on_step: Callable[[], None] = lambda: None,
) -> Tensor:
    """Move codes `start` `[N, L, w]` so that they draw `targets`; returns `[N, L, w]`.

    Steps are in units of `unit`, the spread of random codes, so that `pivot_lr` carries over to other
    generators. Images do not influence one another.
    """
    generator, config, perceptual = inverter.generator, inverter.config, inverter.perceptual
    n, layers, width = start.shape
    moves = torch.zeros(n, (layers + 1) * width, device=start.device)
    adam = RowAdam(moves)

    def code(values: Tensor) -> Tensor:
        stacked = values.reshape(n, layers + 1, width)
        return start + unit * (stacked[:, :1] + stacked[:, 1:])

    for step in range(config.pivot_steps):
        with torch.enable_grad():
            leaf = moves.detach().requires_grad_()
            ws = code(leaf)
            loss, _ = distance(generator.draw(ws), targets, perceptual, config.l2_weight, config.perceptual_weight)
            loss = loss + config.pivot_delta_weight * distance_to_w(ws, generator.mean_code, unit)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        adam.update(moves, gradient, config.pivot_lr * cosine(step, config.pivot_steps))
        on_step()
    return code(moves).detach()
