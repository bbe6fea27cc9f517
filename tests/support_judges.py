"""What a discriminator sees: how well it tells two kinds of images apart after a few steps."""

import torch

from audit.generator.stylegan2.losses import logistic


def smooth_images(n):
    """Grey images `[n, 1, 16, 16]` without fine detail, from torch's global stream."""
    return torch.nn.functional.interpolate(torch.randn(n, 1, 4, 4), 16, mode="bicubic")


def losses_of_telling_apart(build, pair, steps, rate):
    """Train the network of `build()` to tell the `(drawn, real)` of `pair()` apart: its loss `[steps]`, from seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build()
        optimiser = torch.optim.Adam(network.parameters(), lr=rate, betas=(0.0, 0.99))
        losses = []
        for _ in range(steps):
            drawn, real = pair()
            loss = logistic(-network(drawn)) + logistic(network(real))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
    return torch.stack(losses)
