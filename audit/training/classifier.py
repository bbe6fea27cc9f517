"""Train one classifier from a configuration: weights with everything needed to use them, and a card with its scores."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from audit.checkpoint import fingerprint
from audit.classifiers.architectures import build_architecture
from audit.config import RobustnessConfig, eps_value
from audit.data.audit_set import AuditSet
from audit.data.load import load_data
from audit.environment import choose_device
from audit.errors import ConfigError
from audit.robustness.clean import clean_metrics
from audit.robustness.evaluate import robust_accuracy
from audit.seeds import stage_seed
from audit.training.card import save_weights, write_card
from audit.training.config import ClassifierTrainConfig
from audit.training.loop import Task, train
from audit.training.objectives import CrossEntropy, Objective, Trades
from audit.training.stream import Stream, held_out_phantom, phantom_stream, set_stream, training_steps

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


def build_network(architecture: str, num_classes: int, channels: int, args: dict[str, Any], seed: int) -> nn.Module:
    """Build an architecture with weights drawn from `seed`, global RNG untouched; raises ClassifierError if unknown."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(seed, "train/initialise"))
        return build_architecture(architecture, num_classes, channels, args)


def objective_of(config: ClassifierTrainConfig, class_counts: Tensor) -> Objective:
    """Return the objective the configuration asks for; `class_counts` `[K]` serve balanced class weights."""
    chosen = config.objective
    weights = None
    if chosen.class_weights == "balanced":
        weights = class_counts.sum() / (len(class_counts) * class_counts.clamp_min(1)).float()
    elif chosen.class_weights is not None:
        if len(chosen.class_weights) != len(class_counts):
            raise ConfigError(
                f"objective.class_weights has {len(chosen.class_weights)} values for {len(class_counts)} classes."
            )
        weights = torch.tensor([float(w) for w in chosen.class_weights])
    clean = CrossEntropy(chosen.label_smoothing, weights)
    if chosen.kind == "plain":
        return clean
    return Trades(eps_value(chosen.eps), chosen.beta, chosen.steps, chosen.step_size, chosen.ramp, clean)


def normalisation(config: ClassifierTrainConfig, images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation per channel: from the configuration, else measured on `images`."""
    channels = images.shape[1]
    mean = config.mean or tuple(round(float(v), 4) for v in images.mean(dim=(0, 2, 3)))
    std = config.std or tuple(round(max(float(v), MIN_STD), 4) for v in images.std(dim=(0, 2, 3)))
    if len(mean) != channels or len(std) != channels:
        raise ConfigError(f"mean and std need {channels} value(s), one per channel; given: {len(mean)} and {len(std)}.")
    return mean, std


def validation_score(config: ClassifierTrainConfig, model: nn.Module, validation: AuditSet) -> float:
    """Return the number the best checkpoint is chosen by: robust accuracy under TRADES, else clean accuracy."""
    if config.objective.kind == "plain":
        return float(clean_metrics(model, validation).accuracy.value or 0)
    attack = RobustnessConfig(n=len(validation), eps=(config.objective.eps,), steps=config.selection.attack_steps)
    robust = robust_accuracy(model, validation, attack, config.seed, stage="validation")
    return float(robust.pgd[config.objective.eps].robust_accuracy.value or 0)


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
    attack = RobustnessConfig(n=wanted.attacked, eps=wanted.eps, steps=wanted.steps)
    return [
        {
            "data": name,
            "clean": clean_metrics(model, images).model_dump(),
            "robust": robust_accuracy(model, images, attack, config.seed, stage=f"PGD on {name}").model_dump(),
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


def train_classifier(config: ClassifierTrainConfig, out: Path) -> Path:
    """Train a classifier and write `NAME.safetensors` and its card `NAME.json` to the folder `out`; returns the former.

    A checkpoint in `out` lets a killed run go on where it was; it is removed once the card is written. Raises
    ConfigError, DataError (a split is missing) or ClassifierError (unknown architecture, logits not finite).
    """
    out.mkdir(parents=True, exist_ok=True)
    stream = phantom_stream(config) if config.data.is_phantom else set_stream(config)
    images, labels = stream.measured()
    mean, std = normalisation(config, images)
    counts = torch.bincount(labels, minlength=len(stream.class_names))
    network = build_network(
        config.architecture, len(stream.class_names), stream.image_shape[0], config.architecture_args, config.seed
    )
    model = PixelModel(network, mean, std)
    objective = objective_of(config, counts)
    task = Task(
        name=f"training {config.name}",
        batch=stream.batch,
        loss=objective,
        score=lambda judged: validation_score(config, judged, stream.validation),
    )
    checkpoint = out / f"{config.name}.checkpoint.pt"
    steps = training_steps(config, stream)
    outcome = train(
        model,
        task,
        config.optimiser,
        steps=steps,
        select_every=config.selection.every,
        seed=config.seed,
        checkpoint=checkpoint,
        key=fingerprint(config.model_dump_json(exclude={"evaluation"})),
        device=choose_device(config.device),
    )
    path = out / f"{config.name}.safetensors"
    digest = save_weights(network.state_dict(), _metadata(config, stream, mean, std), path)
    write_card(
        path,
        {
            "name": config.name,
            "kind": "classifier",
            "weights_sha256": digest,
            "parameters": sum(p.numel() for p in network.parameters()),
            "classes": list(stream.class_names),
            "data": stream.description,
            "seed": config.seed,
            "steps": steps,
            "images_seen": steps * config.optimiser.batch_size,
            "selection": {
                "by": "clean accuracy"
                if config.objective.kind == "plain"
                else f"PGD accuracy at {config.objective.eps}",
                "n": len(stream.validation),
                "step": outcome.best_step,
                "score": outcome.best_score,
                "history": outcome.history,
            },
            "scores": scores(config, model),
            "seconds": round(outcome.seconds, 1),
            "config": config.model_dump(
                mode="json", exclude={"device"} | ({"data"} if not config.data.is_phantom else set())
            ),
        },
    )
    checkpoint.unlink(missing_ok=True)
    return path
