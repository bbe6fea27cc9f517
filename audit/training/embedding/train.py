"""Train the domain embedding: a small encoder by contrast of views, on the generator's own images and no label.

The images are those that a generator is trained on: same loader, same split. What chooses the weights is the
contrastive loss on images held back from that split; labels enter only the card, after the training.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audit.config import is_shipped
from audit.data.audit_set import AuditSet
from audit.data.describe import note_on_training_data
from audit.data.load import load_images, training_split
from audit.embeddings.domain import DomainEncoder
from audit.errors import ConfigError, DataError
from audit.runtime.distributed import ALONE, Workers, workers
from audit.runtime.seeds import stage_generator, stage_seed
from audit.training.embedding.config import EmbeddingTrainConfig
from audit.training.embedding.contrastive import Contrasted, nt_xent, two_views
from audit.training.embedding.scores import scores, yardsticks
from audit.training.shared.card import save_weights, write_card
from audit.training.shared.loop import Outcome, Task, checkpoint_key, train
from audit.training.shared.passes import Passes, pass_order
from audit.training.shared.stream import MEASURED_IMAGES, training_steps

MIN_STD = 1e-3
"""Floor of a channel's standard deviation: a constant channel must not divide by zero."""
FEWEST = 16
"""Fewest images to learn from: a view is contrasted with those of other images."""


def divided(images: AuditSet, held_back: int, seed: int) -> tuple[AuditSet, AuditSet]:
    """Return the images to learn from and at most `held_back` (a fifth at most) to choose the weights by.

    Raises DataError if there are too few.
    """
    if len(images) < FEWEST:
        raise DataError(
            f"There are {len(images)} images in {images.source} to learn an embedding from, at least {FEWEST} are "
            "needed: name another split or add images."
        )
    order = torch.randperm(len(images), generator=stage_generator(seed, "embedding/held back"))
    count = min(held_back, len(images) // 5)
    return images.select(order[count:]), images.select(order[:count])


def stream(config: EmbeddingTrainConfig, images: AuditSet, group: Workers = ALONE) -> Callable[[int], Tensor]:
    """Return the function from a step to two views of each image of its batch, `[2B, C, H, W]`.

    One of several processes takes its rows of the batch, and contrasts among those alone. Raises ConfigError if that
    leaves an image alone.
    """
    size = min(config.optimiser.batch_size, len(images))
    part = group.part(size)
    if part.stop - part.start < 2:
        raise ConfigError(
            f"optimiser.batch_size is {size} for {group.size} process(es), and a view is contrasted with others: "
            f"set it to {2 * group.size} or more."
        )
    passes = Passes(len(images), size, config.seed)

    def batch(step: int) -> Tensor:
        rows = passes.rows(step)[part]
        generator = stage_generator(config.seed, group.stage(f"embedding/views/{step}"))
        return two_views(images.images(rows), config.augmentation, generator)

    return batch


@torch.no_grad()
def contrast(model: nn.Module, images: AuditSet, config: EmbeddingTrainConfig, device: torch.device) -> float:
    """Return the mean contrastive loss on `images` with the same views each time.

    They are cut into equal parts of the training's batch size or more: among fewer the task would be easier.
    """
    model.eval()
    generator = stage_generator(config.seed, "embedding/validation")
    total = 0.0
    for rows in torch.arange(len(images)).tensor_split(max(1, len(images) // config.optimiser.batch_size)):
        views = two_views(images.images(rows), config.augmentation, generator)
        total += float(nt_xent(model(views.to(device)).float(), config.temperature)) * len(rows)
    return total / len(images)


def _encoder(config: EmbeddingTrainConfig, images: AuditSet) -> DomainEncoder:
    """Build the encoder for images of this shape, with their mean and deviation measured on some of them."""
    encoder = DomainEncoder(config.name, images.image_shape, config.widths, config.features)
    pixels = images.images(pass_order(len(images), config.seed, -1)[:MEASURED_IMAGES])
    encoder.mean.copy_(pixels.mean(dim=(0, 2, 3)))
    encoder.std.copy_(pixels.std(dim=(0, 2, 3)).clamp_min(MIN_STD))
    return encoder


def _card(
    config: EmbeddingTrainConfig, encoder: DomainEncoder, outcome: Outcome, run: dict[str, Any]
) -> dict[str, Any]:
    """Return the card without its scores; `run` holds what is known only after the training."""
    # Paths are of the machine, and say nothing to whoever reads the card.
    left_out = {"device"} | (set() if config.data.is_phantom else {"data"})
    if config.generator is not None and not is_shipped(config.generator):
        left_out |= {"generator"}
    return {
        "name": config.name,
        "kind": "embedding",
        "method": "SimCLR",
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "image_shape": list(encoder.image_shape),
        "widths": list(encoder.widths),
        "features": encoder.features,
        "seed": config.seed,
        "precision": config.optimiser.precision,
        **run,
        "stopped_at": outcome.stopped_at,
        "reason": outcome.reason,
        "selection": {
            "by": "contrastive loss on images held back",
            "step": outcome.best_step,
            "loss": -outcome.best_score,
            "history": [(step, -score) for step, score in outcome.history],
        },
        "seconds": round(outcome.seconds, 3),
        "config": config.model_dump(mode="json", exclude=left_out),
    }


def train_embedding(config: EmbeddingTrainConfig, out: Path) -> Path:
    """Train an embedding and write `NAME.safetensors` and its card `NAME.json` to the folder `out`; returns the former.

    A checkpoint in `out` lets a killed run go on where it was; it is removed once the card is written. Under `torchrun`
    all processes train and the first writes. Raises ConfigError, DataError or GeneratorError.
    """
    out.mkdir(parents=True, exist_ok=True)
    path, checkpoint = out / f"{config.name}.safetensors", out / f"{config.name}.checkpoint.pt"
    data = load_images(config.data, config.seed)
    split = training_split(config.data, data, config.split)
    note_on_training_data(data.split(split))
    learnt, held_back = divided(data.split(split), config.selection.n, config.seed)
    with workers(config.device) as (group, device):
        # Initial weights come from a forked global stream: torch's initialisers take no generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage_seed(config.seed, "embedding/initialise"))
            encoder = _encoder(config, learnt)
            # Channels last is half as fast again on a CPU, and what a GPU's half precision wants.
            model = Contrasted(encoder, config.projection).to(memory_format=torch.channels_last)
        views = stream(config, learnt, group)
        beside = yardsticks(config, data.image_shape, device)  # before the training: a wrong generator fails fast

        def loss(
            net: nn.Module, images: Tensor, targets: Tensor, generator: torch.Generator, progress: float
        ) -> Tensor:
            return nt_xent(net(images), config.temperature)

        batch_size = min(config.optimiser.batch_size, len(learnt))
        steps = training_steps(config.optimiser, len(learnt) // batch_size)
        outcome = train(
            model,
            Task(
                name=f"training {config.name}",
                batch=lambda step: (views(step), torch.empty(0)),
                loss=loss,
                score=lambda network: -contrast(network, held_back, config, device),
            ),
            config.optimiser,
            steps=steps,
            select_every=config.selection.every,
            seed=config.seed,
            checkpoint=checkpoint,
            key=checkpoint_key(config, group, without={"evaluation", "generator"}),
            patience=config.selection.patience,
            device=device,
            workers=group,
        )
    if not group.first:
        return path
    encoder.eval().requires_grad_(False)
    encoder.weights_sha256 = save_weights(encoder.state_dict(), encoder.metadata(), path)
    run = {
        "device": device.type,
        "world_size": group.size,
        "steps": steps,
        "images_seen": outcome.stopped_at * batch_size,
        "data": {
            "source": "phantom" if config.data.is_phantom else Path(config.data.path).name,
            "split": split,
            "train": len(learnt),
            "held_back": len(held_back),
        },
        "weights_sha256": encoder.weights_sha256,
    }
    card = _card(config, encoder, outcome, run)
    write_card(path, card | {"scores": scores(config, [encoder, *beside], data, learnt, device)})
    checkpoint.unlink(missing_ok=True)
    return path
