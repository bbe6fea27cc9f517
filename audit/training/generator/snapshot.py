"""Snapshots of a training: how good each is, and what is kept: weights and card of the best, pictures, scalars.

FID, precision and recall all rest on the one embedding that the card names, and stand beside the same numbers between
real images and others of the set: at equal n where the set has twice as many, else at the stated n.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from audit.embeddings.embedding import Embedder, embed_all, named
from audit.embeddings.resolve import Request, choose, resolve
from audit.errors import ConfigError
from audit.generator.files.load import save_generator
from audit.generator.grid import sample_grid, save_grid
from audit.generator.stylegan2.networks import Generator
from audit.metrics.fid import frechet_distance
from audit.metrics.precision_recall import precision_recall
from audit.runtime.seeds import stage_generator
from audit.training.generator.config import FILES, GeneratorTrainConfig, portable
from audit.training.generator.state import State, one_hot
from audit.training.generator.stream import Reals
from audit.training.shared.card import write_card

GRID_IMAGES, GRID_COLUMNS = 48, 8
EMBED_BATCH = 100


@dataclass(frozen=True)
class Reference:
    """Embedded real images to compare with, the labels that drawn images take, and real against real.

    `real` is `[m, d]`, m the wished n or what there is; `labels` `[n]`; `floor` the line of a card.
    """

    network: Embedder
    real: Tensor
    labels: Tensor
    floor: dict[str, float]


def fid_network(wanted: str, is_phantom: bool, device: torch.device) -> Embedder | None:
    """The embedding that `fid_embedding = wanted` names; None if nothing is to be measured. Raises MetricError."""
    request = Request("fid_embedding", device, is_phantom)
    name = choose(wanted, request)
    return None if name in (None, "none") else resolve(name, request, "vectors")


def compare(drawn: Tensor, real: Tensor) -> dict[str, float]:
    """FID, precision and recall of embeddings `drawn` against `real`."""
    precision, recall = precision_recall(drawn, real)
    return {"fid": frechet_distance(drawn, real), "precision": precision, "recall": recall}


def reference_of(reals: Reals, network: Embedder, n: int, seed: int, device: torch.device) -> Reference:
    """Embed `n` real images (or as many as there are) and measure the floor against as many others of the set."""
    order = torch.randperm(len(reals.dataset), generator=stage_generator(seed, "fid reals"))
    embedded = torch.cat(
        [
            embed_all(network, reals.images(rows).float() / 255, EMBED_BATCH, device)
            for rows in order[: 2 * n].split(EMBED_BATCH)
        ]
    )
    half = min(n, len(embedded) // 2)
    floor = {"n": float(half)} | compare(embedded[half : 2 * half], embedded[:half])
    picked = torch.randint(len(order), (n,), generator=stage_generator(seed, "fid classes"))
    return Reference(network, embedded[:n], reals.labels(picked), floor)


def quality(scores: Mapping[str, float], reference: Reference) -> dict[str, Any]:
    """FID, precision and recall in a card's words, beside real against real and the embedding they rest on."""
    embedding = named(reference.network).model_dump()
    counts = {"n": len(reference.labels), "n_real": len(reference.real)}
    floor = reference.floor
    return {
        "fid": {
            "value": scores["fid"], "floor": floor["fid"], "floor_n": int(floor["n"]), **counts, "embedding": embedding,
        },
        "precision_recall": {
            "precision": scores["precision"], "recall": scores["recall"], "floor_precision": floor["precision"],
            "floor_recall": floor["recall"], "floor_n": int(floor["n"]), **counts, "neighbours": 3,
            "embedding": embedding,
        },
    }  # fmt: skip


def embed_drawn(g: Generator, network: Embedder, labels: Tensor, seed: int) -> Tensor:
    """Embed one drawn image for each of `labels` `[n]`: `[n, d]`, with the same z on every call."""
    rng, device = stage_generator(seed, "generator fid"), g.mean_code.device
    drawn = []
    with torch.no_grad():
        for part in labels.split(EMBED_BATCH):
            z = torch.randn(len(part), g.z_dim, generator=rng).to(device)
            images = g.images(g.mapping(z, c=one_hot(part.to(device), g.c_dim)))
            drawn.append(network.embed(images).float().cpu())
    return torch.cat(drawn)


class Board(Protocol):
    """Where scalars and pictures go beside the files; TensorBoard's writer is one."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Note a number."""

    def add_image(self, tag: str, img_tensor: Tensor, global_step: int) -> None:
        """Note a picture `[C, H, W]`."""

    def close(self) -> None:
        """Write what is pending."""


def open_board(folder: Path, images: int) -> Board:
    """TensorBoard's writer to `folder`, going on at `images` seen. Raises ConfigError where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "tensorboard = true needs the package tensorboard: pip install 'spruce-audit[tensorboard]', or set it to "
            "false."
        ) from None
    return SummaryWriter(str(folder), purge_step=images + 1)


def _card(
    state: State, config: GeneratorTrainConfig, scores: Mapping[str, float], reference: Reference | None,
    class_names: tuple[str, ...],
) -> dict[str, Any]:  # fmt: skip
    card: dict[str, Any] = {"seed": config.seed, "kimg": state.images / 1000, "data": Path(config.data.path).name}
    if reference is not None:
        card |= quality(scores, reference)
    if config.conditional:
        card["classes"] = list(class_names)
    return card | {
        "world_size": state.workers.size,
        "training_seconds": round(state.seconds),
        "config": portable(config, *FILES),
    }


def take_snapshot(
    state: State, config: GeneratorTrainConfig, reference: Reference | None, class_names: tuple[str, ...], out: Path
) -> tuple[dict[str, float], Tensor]:
    """Score the average, keep it in `out` if it is the best so far; returns its scores and its picture `[C, H, W]`."""
    grid = sample_grid(state.ema, GRID_IMAGES, GRID_COLUMNS, config.seed)
    _keep_grids(grid, out / "samples", round(state.images), config.sample_grids)
    scores: dict[str, float] = {}
    if reference is not None:
        scores = compare(embed_drawn(state.ema, reference.network, reference.labels, config.seed), reference.real)
        if scores["fid"] >= state.best_fid:
            return scores, grid
        state.best_fid = scores["fid"]
    card = _card(state, config, scores, reference, class_names)
    save_generator(out / "generator.safetensors", state.ema, state.d, {"card": card})
    write_card(out / "generator.safetensors", card)
    save_grid(grid, out / "samples.png")
    return scores, grid


def _keep_grids(grid: Tensor, folder: Path, images: int, kept: int) -> None:
    if kept == 0:
        return
    save_grid(grid, folder / f"{images:010d}.png")
    for old in sorted(folder.glob("[0-9]*.png"))[:-kept]:
        old.unlink()
