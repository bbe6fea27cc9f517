"""One step of a training: updates of discriminator and generator, the averaged generator, and ADA's probability p.

Source: Karras et al. 2020 (StyleGAN2: sections 3.1 lazy regularisation, 3.2 path length, appendix B), Mescheder et al.
2018 (R1), Karras et al. 2020 (ADA: section 3). R1 is the gradient at the images that the discriminator sees, the
augmented ones, so that it shares the loss's forward pass. Nothing here waits for a GPU but the adjustment of p. The
two updates can be recorded as CUDA graphs: what differs from step to step, and is no tensor, is in their names.
"""

import torch
from torch import Tensor

from audit.generator.stylegan2.losses import path_lengths
from audit.generator.stylegan2.networks import Generator, network_range
from audit.runtime.distributed import ALONE, Workers
from audit.training.generator.augment import ADA_INTERVAL, adapt, augment
from audit.training.generator.config import GeneratorTrainConfig
from audit.training.generator.graphs import Scalars
from audit.training.generator.second import adversarial
from audit.training.generator.state import State, one_hot

W_DECAY = 0.998
"""Decay of the running mean of w."""
PATH_DECAY = 0.99


class Means:
    """Running means of named scalars, kept on the device until they are asked for."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, scalars: Scalars) -> None:
        """Count every one of `scalars` in."""
        for name, value in scalars.items():
            self._sums[name] = self._sums[name] + value.float() if name in self._sums else value.float()
            self._counts[name] = self._counts.get(name, 0) + 1

    def values(self, workers: Workers = ALONE) -> dict[str, float]:
        """Every mean, over the processes too."""
        if not self._sums:
            return {}
        means = torch.stack([total / self._counts[name] for name, total in self._sums.items()])
        workers.average([means])
        return dict(zip(self._sums, means.tolist(), strict=True))


def codes(g: Generator, n: int, mixing: float, rng: torch.Generator, c: Tensor | None = None) -> Tensor:
    """Draw w for `n` images, mixing two styles at a random layer, and update the running mean of w."""
    z = torch.randn(2 * n if mixing > 0 else n, g.z_dim, generator=rng, device=rng.device)
    ws = g.mapping(z, c=c if c is None or mixing == 0 else torch.cat([c, c]))
    with torch.no_grad():
        g.mapping.w_avg.lerp_(ws[:n, 0].float().mean(0), 1 - W_DECAY)
    if mixing == 0:
        return ws
    mixed = torch.rand(n, 1, generator=rng, device=rng.device) < mixing
    cut = torch.randint(1, g.num_ws, (n, 1), generator=rng, device=rng.device)
    late = torch.arange(g.num_ws, device=rng.device)[None] >= cut
    return torch.where((mixed & late)[..., None], ws[n:], ws[:n])


def _drawn_classes(state: State, labels: Tensor) -> Tensor | None:
    """Class vectors for as many drawn images: those of the batch's real ones in another order, so shares agree."""
    if not state.g.c_dim:
        return None
    order = torch.randperm(len(labels), generator=state.rng, device=labels.device)
    return one_hot(labels[order], state.g.c_dim)


def _update_discriminator(
    state: State, config: GeneratorTrainConfig, real: Tensor, labels: Tensor, regularise: bool
) -> Scalars:
    g, discriminators, n = state.g, state.discriminators, len(real)
    # The gradient's own gradient is taken in full precision.
    low = config.precision == "bfloat16" and not regularise
    state.d_opt.zero_grad(set_to_none=True)
    with torch.autocast(state.device.type, torch.bfloat16, enabled=low):
        with torch.no_grad():
            c = _drawn_classes(state, labels)
            fake = g.synthesis(codes(g, n, config.style_mixing, state.rng, c), "random", generator=state.rng)
            fake = augment(fake.float(), state.p, state.draws, config.augmentation_groups)
            shown = augment(real, state.p, state.draws, config.augmentation_groups).detach()
        shown.requires_grad_(regularise)
        # Two passes: as one batch of twice the size the maps no longer fit the caches of a processor.
        fake_logits = discriminators(fake.contiguous(memory_format=state.layout), c)
        real_logits = discriminators(shown.contiguous(memory_format=state.layout), one_hot(labels, state.d.c_dim))
        loss = adversarial(-fake_logits.float()) + adversarial(real_logits.float())
    scalars = {"d_loss": loss.detach()}
    state.signs += real_logits[:, 0].detach().float().sign().mean()
    if regularise:
        assert config.r1_gamma is not None
        (gradient,) = torch.autograd.grad(real_logits[:, state.r1_logits].sum(), shown, create_graph=True)
        penalty = gradient.square().sum((1, 2, 3)).mean()
        scalars["r1"] = penalty.detach()
        loss = loss + penalty * (config.r1_gamma / 2 * config.r1_interval)
    loss.backward()
    state.workers.average_gradients(discriminators)
    state.d_opt.step()
    return scalars


def _update_generator(state: State, config: GeneratorTrainConfig, labels: Tensor, regularise: bool) -> Scalars:
    g, n, rng = state.g, len(labels), state.rng
    state.g_opt.zero_grad(set_to_none=True)
    with torch.autocast(state.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
        c = _drawn_classes(state, labels)
        fake = g.synthesis(codes(g, n, config.style_mixing, rng, c), "random", generator=rng)
        fake = augment(fake.float(), state.p, state.draws, config.augmentation_groups)
        loss = adversarial(state.discriminators(fake.contiguous(memory_format=state.layout), c).float())
    loss.backward()
    scalars = {"g_loss": loss.detach()}
    if regularise:
        half = max(n // 2, 1)
        ws = codes(g, half, config.style_mixing, rng, None if c is None else c[:half])
        lengths = path_lengths(g.synthesis(ws, "random", generator=rng), ws, rng)
        mean = lengths.detach().mean()
        state.workers.average([mean])
        state.path_mean.lerp_(mean, 1 - PATH_DECAY)
        penalty = (lengths - state.path_mean).square().mean()
        scalars["path"] = penalty.detach()
        (penalty * (config.path_length_weight * config.path_length_interval)).backward()
    state.workers.average_gradients(g)
    state.g_opt.step()
    return scalars


def _average(state: State, config: GeneratorTrainConfig) -> None:
    """Move the averaged generator towards the new one; its half-life grows with the images seen until it is full."""
    half_life = config.ema_kimg * 1000
    if config.ema_rampup is not None:
        half_life = min(half_life, state.images * config.ema_rampup)
    share = 1 - 0.5 ** (config.batch_size / max(half_life, 1e-8))
    with torch.no_grad():
        torch._foreach_lerp_(list(state.ema.parameters()), list(state.g.parameters()), share)
        for kept, buffer in zip(state.ema.buffers(), state.g.buffers(), strict=True):
            kept.copy_(buffer)


def train_step(state: State, config: GeneratorTrainConfig, real: Tensor, labels: Tensor, means: Means) -> None:
    """Update both networks once; `real` uint8 `[B, C, R, R]` and `labels` `[B]` are this process's part of a batch."""
    state.seed_step()
    with state.parts.step():
        if config.lr_half_life is not None:
            late = max(state.images / 1000 - config.lr_decay_from, 0.0)
            state.set_rates(0.5 ** (late / config.lr_half_life))
        _train_step(state, config, real, labels, means)


def _train_step(state: State, config: GeneratorTrainConfig, real: Tensor, labels: Tensor, means: Means) -> None:
    shown = state.parts.keep(network_range(real.float() / 255))
    r1 = bool(config.r1_gamma) and state.step % config.r1_interval == 0
    state.g.requires_grad_(False)
    means.add(state.parts.run(f"D {r1}", lambda: _update_discriminator(state, config, shown, labels, r1)))
    state.g.requires_grad_(True)
    for parameter in state.d_trained:
        parameter.requires_grad_(False)
    path = bool(config.path_length_weight) and state.step % config.path_length_interval == 0
    means.add(state.parts.run(f"G {path}", lambda: _update_generator(state, config, labels, path)))
    for parameter in state.d_trained:
        parameter.requires_grad_(True)
    state.workers.average([state.g.mapping.w_avg])
    state.images += config.batch_size
    state.step += 1
    _average(state, config)
    if state.step % ADA_INTERVAL == 0:
        state.workers.average([state.signs])
        mean_sign = state.signs / ADA_INTERVAL
        state.signs.zero_()
        means.add({"r_t": mean_sign})
        if config.augmentation == "ada":
            seen, full = ADA_INTERVAL * config.batch_size, config.ada_kimg * 1000
            state.p = adapt(state.p, float(mean_sign), seen, config.ada_target, full, config.ada_max)
