"""Train the phantom's factor network: regression of the standardised causal factors of fresh phantom images.

Targets are the phantom's true factors, so the network knows what is in an image without having seen any classifier.
Noise and blur on its input keep adversarial-like pixel noise from passing as a change of anatomy.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.functional import gaussian_blur

from audit.data import phantom
from audit.embeddings.phantom_factors import PhantomFactors
from audit.runtime.distributed import ALONE
from audit.runtime.environment import choose_device
from audit.runtime.seeds import stage_generator, stage_seed
from audit.training.classifier.config import FactorsTrainConfig
from audit.training.shared.card import save_weights, write_card
from audit.training.shared.loop import Task, checkpoint_key, train

MEASURED_IMAGES = 4096
"""Images on which mean and standard deviation of every factor are measured."""
STRESSED = (*phantom.FINDING_FACTORS, *phantom.MARKER_FACTORS)
"""The factors that carry the finding or the marker: what an audit of the phantom is about."""
DISTURBED = ("blur", "noise")
"""Factors that the disturbance of the input overwrites; they are no targets."""
BLUR_KERNEL = 7
EVALUATION_BATCH = 256


def disturb(images: Tensor, noise: float, blur: float, generator: torch.Generator) -> Tensor:
    """Blur half of the images by one deviation up to `blur` pixels, add noise of a deviation up to `noise` to each."""
    n = len(images)
    deviation, blurred = torch.rand(1, generator=generator).item() * blur, torch.rand(n, generator=generator) < 0.5
    if deviation > 0:
        soft = gaussian_blur(images, [BLUR_KERNEL, BLUR_KERNEL], [deviation, deviation])
        images = torch.where(blurred[:, None, None, None], soft, images)
    amplitude = torch.rand(n, 1, 1, 1, generator=generator) * noise
    return (images + amplitude * torch.randn(images.shape, generator=generator)).clamp(0, 1)


TARGETS = tuple(name for name in phantom.FACTOR_NAMES if name not in DISTURBED)


def targets_of(batch: phantom.PhantomBatch) -> Tensor:
    """Return the regressed factors `[N, F]` of a phantom batch in the order of `TARGETS`."""
    return torch.stack([batch.factor(name) for name in TARGETS], dim=1)


def r_squared(network: PhantomFactors, n: int, seed: int, stage: str, correlation: float = 0.0) -> Tensor:
    """Return the share of each factor's variance that the network explains, `[F]`, on `n` held-out phantom images."""
    batch = phantom.sample(n, stage_seed(seed, stage), marker_correlation=correlation)
    device = network.factor_mean.device
    with torch.no_grad():
        parts = [network.factors(images.to(device)).cpu() for images in batch.images.split(EVALUATION_BATCH)]
    truth = targets_of(batch)
    residual = (torch.cat(parts) - truth).square().sum(dim=0)
    total = (truth - truth.mean(dim=0)).square().sum(dim=0)
    return 1 - residual / total.clamp_min(1e-12)


def train_factors(config: FactorsTrainConfig, out: Path) -> Path:
    """Train the factor network and write `NAME.safetensors` with its card to the folder `out`; returns the former.

    A checkpoint in `out` lets a killed run go on; it is removed once the card is written.
    """
    out.mkdir(parents=True, exist_ok=True)
    measured = phantom.sample(MEASURED_IMAGES, stage_seed(config.seed, "factors/measure"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(config.seed, "factors/initialise"))
        network = PhantomFactors(TARGETS)
    known = targets_of(measured)
    network.factor_mean.copy_(known.mean(dim=0))
    network.factor_std.copy_(known.std(dim=0).clamp_min(1e-6))
    mean, std = network.factor_mean.clone(), network.factor_std.clone()
    weights = torch.tensor([config.finding_weight if f in STRESSED else 1.0 for f in network.factor_names])
    weights = weights / weights.mean()
    size = config.optimiser.batch_size

    def batch(step: int) -> tuple[Tensor, Tensor]:
        drawn = phantom.sample(size, stage_seed(config.seed, f"factors/phantom/{step}"))
        generator = stage_generator(config.seed, f"factors/disturb/{step}")
        return disturb(drawn.images, config.noise, config.blur, generator), (targets_of(drawn) - mean) / std

    def loss(model: nn.Module, images: Tensor, targets: Tensor, generator: torch.Generator, progress: float) -> Tensor:
        return (functional.smooth_l1_loss(model(images), targets, reduction="none") * weights.to(images)).mean()

    def score(model: nn.Module) -> float:
        assert isinstance(model, PhantomFactors)
        model.eval()
        return float(r_squared(model, config.selection.n, config.seed, "factors/validation").mean())

    assert config.optimiser.steps is not None
    checkpoint = out / f"{config.name}.checkpoint.pt"
    outcome = train(
        network,
        Task(f"training {config.name}", batch, loss, score),
        config.optimiser,
        steps=config.optimiser.steps,
        select_every=config.selection.every,
        seed=config.seed,
        checkpoint=checkpoint,
        key=checkpoint_key(config, ALONE, without={"n_evaluation"}),
        patience=config.selection.patience,
        device=choose_device(config.device),
    )
    path = out / f"{config.name}.safetensors"
    network.eval()
    metadata = {"name": config.name, "factor_names": json.dumps(list(network.factor_names))}
    digest = save_weights(network.state_dict(), metadata, path)
    explained = r_squared(network, config.n_evaluation, config.seed, "factors/evaluation")
    content: dict[str, Any] = {
        "name": config.name,
        "kind": "embedding",
        "weights_sha256": digest,
        "parameters": sum(p.numel() for p in network.parameters()),
        "data": {"source": "phantom", "marker_correlation": 0.0, "drawn": "fresh images at every step"},
        "seed": config.seed,
        "steps": config.optimiser.steps,
        "images_seen": config.optimiser.steps * size,
        "selection": {
            "by": "mean R^2",
            "step": outcome.best_step,
            "score": outcome.best_score,
            "history": outcome.history,
        },
        "scores": {
            "n": config.n_evaluation,
            "r_squared": {k: round(float(v), 4) for k, v in zip(network.factor_names, explained, strict=True)},
        },
        "seconds": round(outcome.seconds, 3),
        "config": config.model_dump(mode="json", exclude={"device"}),
    }
    write_card(path, content)
    checkpoint.unlink(missing_ok=True)
    return path
