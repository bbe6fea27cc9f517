"""Where an inversion starts: the best of a seeded set of random codes; and their spread, the unit of steps."""

import torch
from torch import Tensor

from audit.generator.protocol import Generator
from audit.runtime.memory import at_once, in_slices
from audit.runtime.seeds import stage_generator

CANDIDATES = 512
DRAWN_AT_ONCE = 64


def spread(codes: Tensor) -> float:
    """Standard deviation of codes `[n, w_dim]` about their mean, over all dimensions: the unit of steps in W."""
    return float((codes - codes.mean(0)).square().mean().sqrt().clamp_min(1e-6))


def candidate_codes(generator: Generator, seed: int) -> Tensor:
    """The seeded set of codes that every image of an inversion chooses its start from, `[CANDIDATES, w_dim]`."""
    return generator.random_codes(CANDIDATES, stage_generator(seed, "inversion starts"))


@torch.no_grad()
def nearest_codes(generator: Generator, images: Tensor, codes: Tensor, budget: int) -> Tensor:
    """Of `codes` `[K, w]` the one whose drawn image is nearest to each of `images` `[N, C, R, R]`: `[N, w]`.

    Codes are drawn as many at a time as fit in `budget` bytes, and no drawn image is kept.
    """
    device = codes.device
    given = images.to(device).flatten(1)
    lowest = torch.full((len(images),), torch.inf, device=device)
    nearest = torch.zeros(len(images), codes.shape[1], device=device)

    def drawn(rows: slice) -> Tensor:
        return generator.images(codes[rows][:, None].expand(-1, generator.num_ws, -1)).flatten(1)

    def compare(rows: slice) -> None:
        distances = torch.cdist(given, drawn(rows), compute_mode="donot_use_mm_for_euclid_dist")
        least, place = distances.min(1)
        nearer = least < lowest
        lowest[nearer], nearest[nearer] = least[nearer], codes[rows][place[nearer]]

    in_slices(len(codes), at_once(DRAWN_AT_ONCE, lambda: drawn(slice(1)), device, budget), compare)
    return nearest
