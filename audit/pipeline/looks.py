"""How images look to the networks that metrics rest on: embedded and compared once, and kept."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import Embedder, MapNetwork, Named, embed_all, named
from audit.embeddings.lpips import Lpips
from audit.metrics.perceptual import perceptual_all
from audit.pipeline.context import Context
from audit.runtime.progress import stage_progress

CODE = ("audit.embeddings", perceptual_all.__module__)


def embedded(context: Context, network: Embedder, images: Tensor, most: int = 256) -> Tensor:
    """Embed images `[N, C, H, W]` by `network`, at most `most` at a time: `[N, d]`."""
    embed = partial(embed_all, network, images, most, context.device)
    limits = _limits(context, most)
    return context.stages.kept("embedding", embed, CODE, network=named(network), images=images, limits=limits)


def embed_with_bar(context: Context, network: Embedder, images: AuditSet, stage: str) -> Tensor:
    """Embed a whole set `[N, d]` behind a progress bar, a batch at a time."""

    def embed() -> Tensor:
        parts = []
        with stage_progress(stage, len(images)) as advance:
            for batch, _, _ in images.batches(256):
                parts.append(embed_all(network, batch, 256, context.device))
                advance(len(batch))
        return torch.cat(parts)

    limits = _limits(context, 256)
    return context.stages.kept("embedding", embed, CODE, network=named(network), images=images.content, limits=limits)


def perceptual(context: Context, network: MapNetwork, images: Tensor, others: Tensor) -> Tensor:
    """Perceptual distances `[N]` of `images` to `others`."""
    compare = partial(perceptual_all, network, images, others, 128, context.device)
    return _compared(context, network, compare, images, others)


def lpips(context: Context, network: Lpips, images: Tensor, others: Tensor) -> Tensor:
    """Distances `[N]` of LPIPS of `images` to `others`."""
    return _compared(context, network, partial(network.distance_all, images, others), images, others)


def _compared(context: Context, network: Named, compare: Callable[[], Tensor], *pair: Tensor) -> Tensor:
    limits = _limits(context, len(pair[0]))
    return context.stages.kept("perceptual distance", compare, CODE, network=named(network), pair=pair, limits=limits)


def _limits(context: Context, most: int) -> list[int | str]:
    """Return what decides how many images are together, on which rounding depends."""
    return [most, context.config.max_memory]
