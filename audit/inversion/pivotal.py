"""Pivotal tuning of a whole batch: pivots stay as they are, and every image gets additions to the generator's weights.

Source: Roich et al., "Pivotal Tuning for Latent-based Editing of Real Images" (2021), sections 3.2-3.3; Litsos 2025
equations 5.5.8 to 5.5.11. The modulated convolution takes per-image weights as a grouped convolution, so a batch costs
what its images cost one by one without the overhead, and an image that is done leaves the batch. On a CPU the threads
share the batch's images (`audit.inversion.shares`).

The locality term is evaluated at every `LOCALITY_INTERVAL`-th step with as many times the weight (as StyleGAN2 does
with its regularisers).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from audit.generator.protocol import Generator
from audit.inversion.adam import RowAdam, cosine
from audit.inversion.deltas import Deltas, Rows, joined, layout_of
from audit.inversion.inverter import Inverter
from audit.inversion.loss import Targets, distance, targets_of
from audit.inversion.shares import in_shares
from audit.runtime.memory import allowed, at_once, in_slices
from audit.runtime.seeds import stage_generator
from audit.storage.keys import hash_tensor

LOCALITY_INTERVAL = 4
LR_FLOOR = 0.05
BETAS = (0.9, 0.95)
"""Of Adam here: the loss is deterministic and falls by a factor of ten, so that a long memory of its squared gradient
(0.999) only holds the steps back; measured on phantom images, 300 steps end a third lower."""
KEPT = torch.float16
"""Type in which additions are kept."""


def locality_codes(generator: Generator, pivots: Tensor, images: Tensor, steps: int, alpha: float, seed: int) -> Tensor:
    """Codes at distance `alpha` from the pivots `[N, L, w]` towards random ones (equation 5.5.9): `[N, steps, L, w]`.

    An image's random codes depend on its pixels and the seed, not on its place in the batch.
    """
    drawn = torch.stack(
        [generator.random_codes(steps, stage_generator(seed, f"locality/{hash_tensor(image)}")) for image in images]
    )
    away = drawn[:, :, None] - pivots[:, None]
    return pivots[:, None] + alpha * away / away.norm(dim=-1, keepdim=True).clamp_min(1e-8)


def tune(inverter: Inverter, pivots: Tensor, targets: Targets, on_step: Callable[[], None] = lambda: None) -> Deltas:
    """Tune additions to the generator's weights so that `pivots` `[N, L, w]` draw `targets`.

    The additions have the form that `deltas` says. An image stops at `stop_mse` or after `tuning_steps`. Images do not
    influence one another; `on_step` is told the steps of the first share of them.
    """

    def share(rows: slice, step: Callable[[], None]) -> Deltas:
        return _tune(inverter, pivots[rows], targets.select(rows), step)

    return joined(in_shares(len(pivots), pivots.device, share, on_step))


def _tune(inverter: Inverter, pivots: Tensor, targets: Targets, on_step: Callable[[], None]) -> Deltas:
    generator, config, seed, perceptual = inverter.generator, inverter.config, inverter.seed, inverter.perceptual
    layout = layout_of(generator, config.deltas, config.rank)
    n, device = len(pivots), pivots.device
    rows, active = layout.start(n, seed, device), torch.arange(n, device=device)
    done = torch.empty_like(rows)
    adam = RowAdam(rows, BETAS)
    held: Tensor | None = None
    if config.locality_weight > 0 and config.tuning_steps > 0:
        terms = -(-config.tuning_steps // LOCALITY_INTERVAL)
        # Random codes lie about sqrt(2 w_dim) apart where W has unit spread: locality is held most of the way there.
        alpha = generator.w_dim**0.5 if config.locality_alpha is None else config.locality_alpha
        held = locality_codes(generator, pivots, targets.images, terms, alpha, seed)

    def weighted(drawn: Tensor, aims: Targets) -> tuple[Tensor, Tensor]:
        return distance(drawn, aims, perceptual, config.l2_weight, config.perceptual_weight)

    for step in range(config.tuning_steps + 1):
        with torch.enable_grad():
            leaf = rows.detach().requires_grad_()
            deltas = layout.additions(leaf)
            loss, mse = weighted(generator.draw(pivots, deltas), targets)
            reached = mse.detach() <= config.stop_mse
            if reached.any() or step == config.tuning_steps:
                leaving = reached if step < config.tuning_steps else torch.ones_like(reached)
                done[active[leaving]] = rows[leaving]
                if leaving.all():
                    break
            if held is not None and step % LOCALITY_INTERVAL == 0:
                near = held[:, step // LOCALITY_INTERVAL]
                with torch.no_grad():
                    original = targets_of(generator.draw(near).clamp(0, 1), perceptual if targets.maps else None)
                away, _ = weighted(generator.draw(near, deltas), original)
                loss = loss + config.locality_weight * LOCALITY_INTERVAL * away
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        adam.update(rows, gradient, config.tuning_lr * cosine(step, config.tuning_steps, LR_FLOOR))
        if reached.any():
            stay = ~reached
            rows, active, pivots, targets = rows[stay], active[stay], pivots[stay], targets.select(stay)
            held = None if held is None else held[stay]
            adam.keep(stay)
        on_step()
    # Half precision halves the store; what it loses is far below the error that is left (benchmarks/inversion.py).
    return Deltas(layout.shapes, [layout.split(done.to(KEPT))])


@torch.no_grad()
def editability(
    generator: Generator, pivots: Tensor, deltas: Mapping[str, Rows], seed: int, share: float = 0.5
) -> Tensor:
    """Correlation `[N]` of the image change by a random latent step before and after tuning; 1: edits are unchanged.

    The step goes `share` of the way from each pivot to a random code. This is what pivotal tuning must not damage. The
    codes are those of the whole batch; images are drawn as many at a time as the memory allows.
    """
    codes = generator.random_codes(len(pivots), stage_generator(seed, "editability"))
    device = codes.device

    def correlation(rows: slice) -> Tensor:
        places = torch.arange(len(pivots))[rows]
        own = {name: values[places].to(device) for name, values in deltas.items()}
        held = pivots[rows].to(device)
        moved = held.lerp(codes[rows, None].expand_as(held), share)
        before = (generator.draw(moved) - generator.draw(held)).flatten(1)
        after = (generator.draw(moved, own) - generator.draw(held, own)).flatten(1)
        return torch.cosine_similarity(
            before - before.mean(1, keepdim=True), after - after.mean(1, keepdim=True), dim=1
        )

    most = at_once(len(pivots), lambda: correlation(slice(1)), device, allowed(device))
    return torch.cat(in_slices(len(pivots), most, correlation))
