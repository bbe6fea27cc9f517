"""Training of a generator on real images; the best snapshot by FID is kept.

A run that was killed resumes from its last snapshot and ends with the same result. Several processes started by
`torchrun` share its batches. A step is in `audit.training.generator.step`, a snapshot in
`audit.training.generator.snapshot`.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from audit.data.audit_set import AuditSet
from audit.data.describe import note_on_training_data
from audit.data.load import load_images, training_split
from audit.embeddings.embedding import Embedder
from audit.errors import ConfigError, DataError
from audit.runtime.distributed import ALONE, Workers, workers
from audit.storage.checkpoint import fingerprint
from audit.storage.files import atomic_write_history
from audit.training.generator.config import RUN_ONLY, GeneratorTrainConfig
from audit.training.generator.snapshot import Board, Reference, fid_network, open_board, reference_of, take_snapshot
from audit.training.generator.state import State
from audit.training.generator.step import Means, train_step
from audit.training.generator.stream import Reals

CHECKPOINT = "checkpoint.pt"


def run_generator_training(config: GeneratorTrainConfig, out: Path) -> Path:
    """Load the data that `config` names, train, and return the path of the generator.

    Under `torchrun` every process calls this with the same arguments.
    """
    with workers(config.device) as (group, device):
        data = load_images(config.data, config.seed)
        split = training_split(config.data, data, config.split)
        note_on_training_data(data.split(split))
        network = fid_network(config.fid_embedding, config.data.is_phantom, device) if group.first else None
        return train_generator(config, data.split(split), out, network, device, group)


def _run_key(
    config: GeneratorTrainConfig, state: State, reals: Reals, embedding: Embedder | None,
    device: torch.device, group: Workers,
) -> str:  # fmt: skip
    """Fingerprint of a run but its length: files stand by what they hold; a stream is of one kind of device."""
    inputs = {
        "settings": config.model_dump(mode="json", exclude=set(RUN_ONLY)),
        "images": reals.fingerprint(),
        "start": state.start_sha256,
        "second discriminator": state.second_name,
        "embedding": None if embedding is None else embedding.weights_sha256,
        "device": device.type,
        "processes": group.size,
    }
    return fingerprint(json.dumps(inputs, sort_keys=True))


def _check(config: GeneratorTrainConfig, dataset: AuditSet, device: torch.device, group: Workers) -> None:
    if len(dataset) < config.batch_size:
        raise DataError(f"{dataset.source} has {len(dataset)} images to learn from; a batch needs {config.batch_size}.")
    if config.conditional and len(dataset.class_names) < 2:
        raise ConfigError(f"conditional = true needs two classes, and {dataset.source} has one: set it to false.")
    group.part(config.batch_size, "batch_size")
    if config.precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise ConfigError('precision = "bfloat16" is not supported by this GPU: set it to "float32".')


def train_generator(
    config: GeneratorTrainConfig, dataset: AuditSet, out: Path, embedding: Embedder | None, device: torch.device,
    group: Workers = ALONE,
) -> Path:  # fmt: skip
    """Train on the images of `dataset` and return the path of the best snapshot by FID in `embedding`.

    Without an embedding the last average is kept. Files in `out`: `generator.safetensors`, its card
    `generator.json`, images it draws `samples.png`, those of the latest snapshots `samples/`, `history.jsonl`,
    `checkpoint.pt` to resume from, and `tensorboard/` if asked for. With several processes `embedding` is used by the
    first alone, which writes. Raises GeneratorError for sizes that are no power of two or a `start_from` that does not
    fit, DataError for too few images, ConfigError if `out` holds a run of another configuration.
    """
    config = config.resolved(dataset.image_shape[-1])
    _check(config, dataset, device, group)
    classes = len(dataset.class_names) if config.conditional else 0
    state = State(config, dataset.image_shape, classes, device, group)
    with Reals(dataset, config.batch_size, config.seed, device, config.cache_mb, group) as reals:
        # The first process decides whether the folder holds this run: it alone knows the embedding.
        key = group.text_of_first(lambda: _run_key(config, state, reals, embedding, device, group), device)
        out.mkdir(parents=True, exist_ok=True)
        state.resume(out / CHECKPOINT, key)
        board = open_board(out / "tensorboard", state.images) if config.tensorboard and group.first else None
        try:
            reference = None
            if embedding is not None and state.images < int(config.kimg * 1000) and group.first:
                reference = reference_of(reals, embedding, config.fid_images, config.seed, device)
            _train(config, state, reals, reference, _Place(out, key, board))
        finally:
            if board is not None:
                board.close()
    return out / "generator.safetensors"


@dataclass(frozen=True)
class _Place:
    """Where a run is kept: its folder, the key of its checkpoint, and the board if one is asked for."""

    folder: Path
    key: str
    board: Board | None


def _train(
    config: GeneratorTrainConfig, state: State, reals: Reals, reference: Reference | None, place: _Place
) -> None:
    total, group = int(config.kimg * 1000), state.workers
    with group.progress("generator (kimg)", total / 1000, "kimg") as advance:
        advance(state.images / 1000)
        while state.images < total:
            began, first = time.monotonic(), state.images
            until = min(total, state.images + int(config.snapshot_kimg * 1000))
            means = Means()
            while state.images < until:
                images, labels = reals.batch(state.step)
                train_step(state, config, images, labels, means)
                advance(config.batch_size / 1000)
            row = means.values(group)
            spent = time.monotonic() - began
            state.seconds += spent
            row |= {"kimg": state.images / 1000, "p": state.p, "kimg_per_second": (state.images - first) / 1000 / spent}
            if group.first:
                scores, picture = take_snapshot(state, config, reference, reals.dataset.class_names, place.folder)
                row |= scores
                state.history.append(row)
                atomic_write_history(place.folder / "history.jsonl", state.history)
                state.save(place.folder / CHECKPOINT, place.key)
                if place.board is not None:
                    _show(place.board, row, picture, state.images)


def _show(board: Board, row: dict[str, float], picture: Tensor, images: int) -> None:
    for name, value in row.items():
        if name != "kimg":
            board.add_scalar(name, value, images)
    board.add_image("samples", picture, images)
