"""Train one classifier from a configuration: weights with everything needed to use them, and a card with its scores."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audit.classifiers.mode import preserve_mode
from audit.classifiers.probe import first_line
from audit.config import RobustnessConfig
from audit.data.audit_set import AuditSet
from audit.data.load import load_data
from audit.errors import ClassifierError, ConfigError
from audit.robustness.accuracy import clean_metrics
from audit.robustness.evaluate import robust_accuracy
from audit.runtime.distributed import workers
from audit.training.classifier.config import ClassifierTrainConfig
from audit.training.classifier.initial import initial_network
from audit.training.classifier.objectives.objectives import objective_of
from audit.training.shared.card import save_weights, write_card
from audit.training.shared.loop import Outcome, Task, checkpoint_key, train
from audit.training.shared.stream import (
    Stream,
    held_out_phantom,
    phantom_stream,
    selection_steps,
    set_stream,
    training_steps,
)

MIN_STD = 1e-3
"""Floor of a channel's standard deviation: a constant channel must not divide by zero."""


class PixelModel(nn.Module):
    """A network with its normalisation in front: images `[N, C, H, W]` in [0, 1] to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean)[None, :, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[None, :, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images - self.mean) / self.std)
        return logits


def check_takes(model: nn.Module, architecture: str, image_shape: tuple[int, int, int]) -> None:
    """Raise ClassifierError if `model` cannot take images `(channels, height, width)`, before anything is trained."""
    try:
        with preserve_mode(model), torch.no_grad():
            model(torch.zeros(1, *image_shape))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ClassifierError(
            f"Architecture '{architecture}' cannot take images of {image_shape} (channels, height, width; "
            f"{first_line(error)}): set data.image_size, or architecture_args such as img_size."
        ) from None


def normalisation(config: ClassifierTrainConfig, images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel: from the configuration, else measured on `images`."""
    channels = images.shape[1]
    mean = config.mean or tuple(round(float(v), 4) for v in images.mean(dim=(0, 2, 3)))
    std = config.std or tuple(round(max(float(v), MIN_STD), 4) for v in images.std(dim=(0, 2, 3)))
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(f"mean and std need {channels} value(s), one per channel; given: {len(mean)} and {len(std)}.")
    return mean, std


def validation_score(config: ClassifierTrainConfig, model: nn.Module, validation: AuditSet) -> float:
    """Return the number the best checkpoint is chosen by: clean accuracy, or that under PGD in the objective's norm."""
    if config.selects_by == "clean":
        return float(clean_metrics(model, validation).accuracy.value or 0)
    eps, linf = config.selection_eps, config.objective.norm == "Linf"
    attack = RobustnessConfig(
        n=len(validation),
        eps=(eps,) if linf else (),
        l2_eps=() if linf else (eps,),
        steps=config.selection.attack_steps,
        trust=None,
    )
    robust = robust_accuracy(model, validation, attack, config.seed, stage="validation").robust
    attacked = robust.pgd if linf else robust.pgd_l2
    return float(attacked[eps].robust_accuracy.value or 0)


def scores(config: ClassifierTrainConfig, model: nn.Module) -> list[dict[str, Any]]:
    """Measure the finished model for its card: on held-out phantom images, or on the audit split of its data."""
    wanted = config.evaluation
    if config.data.is_phantom:
        sets = [
            (f"phantom, marker correlation {c:g}", held_out_phantom(wanted.n, config.seed, "evaluation", c))
            for c in wanted.marker_correlations
        ]
    else:
        whole = load_data(config.data, config.seed)
        split = config.data.audit_split
        sets = [(f"{Path(config.data.path).name}, split '{split}'", whole.split(split))]
    attack = RobustnessConfig(n=wanted.attacked, eps=wanted.eps, steps=wanted.steps, trust=None)
    return [
        {
            "data": name,
            "clean": clean_metrics(model, images).model_dump(),
            "robust": robust_accuracy(model, images, attack, config.seed, stage=f"PGD on {name}").robust.model_dump(
                exclude_defaults=True
            ),
        }
        for name, images in sets
    ]


def _metadata(
    config: ClassifierTrainConfig, stream: Stream, mean: tuple[float, ...], std: tuple[float, ...]
) -> dict[str, str]:
    channels, height, _ = stream.image_shape
    values = {
        "name": config.name,
        "classes": list(stream.class_names),
        "mean": list(mean),
        "std": list(std),
        "input_size": height,
        "channels": channels,
        "architecture": config.architecture,
        "architecture_args": config.architecture_args,
    }
    return {key: json.dumps(value) for key, value in values.items()}


def _card(
    config: ClassifierTrainConfig, stream: Stream, outcome: Outcome, network: nn.Module, run: dict[str, Any]
) -> dict[str, Any]:
    """What the card says beside the scores; `run` is what only the run itself knows."""
    by = "clean accuracy" if config.selects_by == "clean" else f"PGD accuracy at {config.selection_eps}"
    # Paths of this machine mean nothing to a reader of the card; file names and hashes stand above.
    left_out = {"device"} | ({"initial"} if config.starts_from_file else set())
    left_out |= set() if config.data.is_phantom else {"data"}
    return {
        "name": config.name,
        "kind": "classifier",
        "objective": config.objective.kind,
        "preset": config.preset,
        "parameters": sum(p.numel() for p in network.parameters()),
        "classes": list(stream.class_names),
        "data": stream.description,
        "seed": config.seed,
        "precision": config.optimiser.precision,
        **run,
        "images_seen": outcome.stopped_at * config.optimiser.batch_size,
        "stopped_at": outcome.stopped_at,
        "reason": outcome.reason,
        "selection": {
            "by": by if config.objective.norm == "Linf" else f"{by} (L2)",
            "n": len(stream.validation),
            "step": outcome.best_step,
            "score": outcome.best_score,
            "history": outcome.history,
        },
        "seconds": round(outcome.seconds, 3),
        "config": config.model_dump(mode="json", exclude=left_out),
    }


def train_classifier(config: ClassifierTrainConfig, out: Path) -> Path:
    """Train a classifier and write `NAME.safetensors` and its card `NAME.json` to the folder `out`; returns the former.

    A checkpoint in `out` lets a killed run go on where it was; it is removed once the card is written. Under `torchrun`
    all processes train and the first writes. Raises ConfigError, DataError (a split is missing) or ClassifierError
    (unknown architecture, logits not finite).
    """
    out.mkdir(parents=True, exist_ok=True)
    path, checkpoint = out / f"{config.name}.safetensors", out / f"{config.name}.checkpoint.pt"
    with workers(config.device) as (group, device):
        stream = phantom_stream(config, group) if config.data.is_phantom else set_stream(config, group)
        images, labels = stream.measured()
        mean, std = normalisation(config, images)
        classes, channels = len(stream.class_names), stream.image_shape[0]
        initial = initial_network(
            config.initial, config.architecture, classes, channels, config.architecture_args, config.seed
        )
        model = PixelModel(initial.network, mean, std)
        check_takes(model, config.architecture, stream.image_shape)
        task = Task(
            name=f"training {config.name}",
            batch=stream.batch,
            loss=objective_of(config.objective, torch.bincount(labels, minlength=classes)),
            score=lambda network: validation_score(config, network, stream.validation),
        )
        steps = training_steps(config.optimiser, stream.per_epoch)
        outcome = train(
            model,
            task,
            config.optimiser,
            steps=steps,
            select_every=selection_steps(config, stream),
            seed=config.seed,
            checkpoint=checkpoint,
            key=checkpoint_key(config, group, without={"evaluation"}),
            patience=config.selection.patience,
            device=device,
            workers=group,
        )
    if not group.first:
        return path
    run = {"initial": initial.source, "device": device.type, "world_size": group.size, "steps": steps}
    card = _card(config, stream, outcome, initial.network, run)
    digest = save_weights(initial.network.state_dict(), _metadata(config, stream, mean, std), path)
    write_card(path, {**card, "weights_sha256": digest, "scores": scores(config, model)})
    checkpoint.unlink(missing_ok=True)
    return path
