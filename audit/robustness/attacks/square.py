"""Square attack: random search over square windows, with no gradient (Andriushchenko et al. 2020, algorithms 1-3).

Every image has windows of its own. A query is written into the current images in place and only the windows of
refused queries are put back, so that beside the forward pass the cost is that of the windows. The images that are
fooled leave the batch. Random numbers are drawn for the whole batch, so that an image's search does not depend on when
its neighbours leave.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from audit.errors import MetricError
from audit.robustness.attacks.ball import Norm, per_image
from audit.robustness.attacks.losses import margin
from audit.robustness.attacks.target import Target

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""Queries of 10000 after which the share of the image that a window covers is halved (section 5.1 of the paper)."""
DRAWN_AT_ONCE = 64
"""Queries for which random numbers are drawn in one go."""


def window_sides(queries: int, p_init: float, height: int, width: int, norm: Norm) -> list[int]:
    """Return the side of the windows of each query: `sqrt(p * H * W)` with p halved on the paper's schedule.

    In L2 a side is odd and at least 3, as its pattern needs a middle; no side is larger than the image.
    """
    sides = []
    for query in range(queries):
        at = query * 10_000 // queries
        share = p_init / 2 ** sum(at > limit for limit in HALVINGS)
        side = max(round(math.sqrt(share * height * width)), 1)
        if norm == "L2":
            side = max(side, 3) | 1
        sides.append(min(side, height, width))
    return sides


def _hill(height: int, width: int) -> Tensor:
    """Return the pattern of eq. 2, `[height, width]` with height >= width: a pyramid that is steepest at its middle."""
    half = height // 2
    rows = (torch.arange(1, height + 1) - half - 1).abs()
    columns = (torch.arange(1, width + 1) - width // 2 - 1).abs()
    level = half - torch.maximum(rows[:, None], columns)
    heights = (1 / torch.arange(half + 1, 0, -1, dtype=torch.float32).square()).cumsum(0)
    return heights[level]


def pattern(side: int) -> Tensor:
    """Return the two-hill pattern of eq. 3 `[side, side]` with Euclidean norm 1: one hill up, one hill down."""
    left = side // 2
    both = torch.cat([_hill(side, left), -_hill(side, side - left)], dim=1)
    return both / both.norm()


@dataclass(frozen=True)
class _Plan:
    """How the search goes: radius in pixel units, queries of each image, share that the first windows cover."""

    eps: float
    queries: int
    p_init: float
    generator: torch.Generator


@dataclass
class _Search:
    """The images still standing, flattened to `[n, C * H * W]`, and what the search knows of them.

    `length` `[n]` is the squared Euclidean length of the offset, which only the search in L2 needs.
    """

    rows: Tensor
    images: Tensor
    labels: Tensor
    current: Tensor
    margin: Tensor
    length: Tensor

    def drop(self, dropped: Tensor) -> None:
        """Leave the images marked in `dropped` `[n]` out."""
        kept = ~dropped
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name)[kept])


@dataclass(frozen=True)
class _Windows:
    """Random numbers of a run of queries for the whole batch: corners `[queries, N]`, signs `[queries, N, C, 1]`."""

    corner: Tensor
    second: Tensor
    signs: Tensor
    turned: Tensor


def _draw(sides: list[int], shape: torch.Size, generator: torch.Generator, device: torch.device) -> _Windows:
    n, channels, height, width = shape
    uniform = torch.rand(len(sides), n, 5 + channels, generator=generator, device=generator.device).to(device)
    side = torch.tensor(sides, device=device)[:, None]
    # Rounding may carry u * (H - side + 1) up to its end, hence the minimum.
    row, row2 = (torch.minimum((uniform[..., i] * (height - side + 1)).long(), height - side) for i in (0, 1))
    column, column2 = (torch.minimum((uniform[..., i] * (width - side + 1)).long(), width - side) for i in (2, 3))
    signs = torch.where(uniform[..., 5:, None] < 0.5, -1.0, 1.0)
    return _Windows(row * width + column, row2 * width + column2, signs, (uniform[..., 4] < 0.5).long())


def _window_offsets(side: int, shape: torch.Size, device: torch.device) -> Tensor:
    """Return where the pixels of a window `[C * side * side]` lie in a flat image, counted from its corner."""
    _, channels, height, width = shape
    span = torch.arange(side, device=device)
    plane = (span[:, None] * width + span).flatten()
    return (torch.arange(channels, device=device)[:, None] * (height * width) + plane).flatten()


def _stripes(images: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Return `images` with vertical stripes of height +-eps, drawn for each channel and column (section 3.2)."""
    n, channels, _, width = images.shape
    uniform = torch.rand(n, channels, 1, width, generator=generator, device=generator.device).to(images.device)
    return (images + torch.where(uniform < 0.5, -eps, eps)).clamp(0, 1)


def _tiles(images: Tensor, eps: float, generator: torch.Generator) -> Tensor:
    """Return `images` under a grid of 5 x 5 patterns with random signs, scaled to length `eps` (section 3.3)."""
    n, channels, height, width = images.shape
    side = max(min(height, width) // 5, 1)
    down, across = -(-height // side), -(-width // side)
    uniform = torch.rand(n, channels, down, across, generator=generator, device=generator.device).to(images.device)
    signs = torch.where(uniform < 0.5, -1.0, 1.0)
    offset = torch.kron(signs, pattern(side).to(images))[..., :height, :width]
    length = offset.flatten(1).norm(dim=1).clamp_min(1e-12)
    return (images + offset * per_image(eps / length, offset)).clamp(0, 1)


def _query(target: Target, search: _Search) -> Tensor:
    return margin(target.logits(search.current.view(-1, *target.images.shape[1:])), search.labels)


def _linf_step(target: Target, search: _Search, eps: float, index: Tensor, signs: Tensor) -> None:
    """Algorithm 2: set each channel of the window `index` `[n, C * side**2]` to +-eps; keep where the margin grows."""
    old = search.current.gather(1, index)
    base = search.images.gather(1, index).view(*signs.shape[:2], -1)
    new = (base + signs * eps).clamp(0, 1).flatten(1)
    search.current.scatter_(1, index, new)
    found = _query(target, search)
    better = found > search.margin
    search.current.scatter_(1, index, torch.where(better[:, None], new, old))
    search.margin = torch.where(better, found, search.margin)


def _l2_step(target: Target, search: _Search, eps: float, index: Tensor, second: Tensor, added: Tensor) -> None:
    """Algorithm 3: move what the offset weighs in the window `second` to `index`, along `added` `[n, C, side**2]`."""
    base, old = search.images.gather(1, index), search.current.gather(1, index)
    here = (old - base).view_as(added)
    # The first window is emptied before the second one is read, so that their overlap is counted once.
    search.current.scatter_(1, index, base)
    base2, old2 = search.images.gather(1, second), search.current.gather(1, second)
    weight = here.square().sum(dim=2)
    freed = weight + (old2 - base2).view_as(added).square().sum(dim=2)
    unused = (eps * eps - search.length).clamp_min(0)
    available = (freed + unused[:, None] / freed.shape[1]).sqrt()
    direction = added + here / weight.sqrt().clamp_min(1e-12)[..., None]
    direction *= (available / direction.norm(dim=2).clamp_min(1e-12))[..., None]
    new = (base + direction.flatten(1)).clamp(0, 1)
    search.current.scatter_(1, second, base2).scatter_(1, index, new)
    found = _query(target, search)
    better = found > search.margin
    search.current.scatter_(1, second, torch.where(better[:, None], base2, old2))
    search.current.scatter_(1, index, torch.where(better[:, None], new, old))
    search.margin = torch.where(better, found, search.margin)
    moved = search.length - freed.sum(dim=1) + (new - base).square().sum(dim=1)
    search.length = torch.where(better, moved, search.length)


def square_attack(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    generator: torch.Generator,
    norm: Norm = "Linf",
    queries: int = 5000,
    p_init: float = 0.8,
) -> Tensor:
    """Return the images `[N, C, H, W]` of largest margin `max_{k != y} z_k - z_y` within `eps` (pixel units).

    `labels` are int64 `[N]`; `queries` counts the forward passes of an image, its start included; `p_init` is the share
    of the image that the first windows cover. An image that is misclassified already is returned unchanged; the first
    image that fools is kept. No gradient is taken. The classifier keeps its mode. Raises MetricError on images, labels,
    eps, queries or p_init out of range, and ClassifierError on logits that are not finite.
    """
    target = Target("Square", classifier, images, labels, norm)
    target.check_eps(eps)
    if queries < 1 or not 0 < p_init <= 1:
        raise MetricError(f"Square needs at least 1 query and p_init in (0, 1]; given: {queries} and {p_init:.4g}.")
    plan = _Plan(eps, queries, p_init, generator)
    result = target.images.clone()
    # Not inference mode: what a network keeps from a forward pass under it could not be used in a gradient later.
    with target.attacked() as logits, torch.no_grad():
        standing = (logits.argmax(dim=1) == target.labels).nonzero().flatten()
        if len(standing) > 0:
            start = (_stripes if norm == "Linf" else _tiles)(target.images, eps, generator)[standing].flatten(1)
            origin = target.images[standing].flatten(1)
            unknown = torch.zeros_like(origin[:, 0])
            search = _Search(standing, origin, target.labels[standing], start, unknown, unknown)
            _run(target, search, result, plan)
    return target.within(result, eps)


def _run(target: Target, search: _Search, result: Tensor, plan: _Plan) -> None:
    """Run the random search from the start in `search.current` and write the images found into `result`."""
    shape, norm, queries = result.shape, target.norm, plan.queries
    sides = window_sides(queries - 1, plan.p_init, shape[2], shape[3], norm)
    search.margin = _query(target, search)
    offsets, added = torch.empty(0), torch.empty(0)
    for query in range(queries):
        fooled = search.margin > 0
        if query == queries - 1 or bool(fooled.any()):
            # The last ones are written as well, fooled or not: the nearest to being fooled is kept.
            written = fooled if query < queries - 1 else torch.ones_like(fooled)
            result[search.rows[written]] = search.current[written].view(-1, *shape[1:])
            search.drop(written)
            if len(search.rows) == 0:
                return
        at = query % DRAWN_AT_ONCE
        if at == 0:
            windows = _draw(sides[query : query + DRAWN_AT_ONCE], shape, plan.generator, result.device)
            # Measured anew now and then, because the running sum of the squared lengths gathers rounding.
            search.length = (search.current - search.images).square().sum(dim=1)
        if query == 0 or sides[query] != sides[query - 1]:
            offsets = _window_offsets(sides[query], shape, result.device)
            if norm == "L2":
                one = pattern(sides[query]).to(result)
                added = torch.stack([one, one.T]).flatten(1)
        index = windows.corner[at, search.rows, None] + offsets
        signs = windows.signs[at, search.rows]
        if norm == "Linf":
            _linf_step(target, search, plan.eps, index, signs)
        else:
            pushed = signs * added[windows.turned[at, search.rows]][:, None]
            second = windows.second[at, search.rows, None] + offsets
            _l2_step(target, search, plan.eps, index, second, pushed)
