"""Training of the encoder (e4e): it learns to redraw real and drawn images by codes that stay near W.

Source: Tov et al. (2021), sections 4.1-4.3; Litsos 2025 equations 5.5.3 to 5.5.6. Offsets are unlocked one after
another. On drawn images the code is known, so they are also taught by it. The latent discriminator tells codes of the
mapping network from the encoder's, layer by layer, with R1 on the former.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import torch
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from audit.config import Training, Weights
from audit.data.audit_set import AuditSet
from audit.embeddings.embedding import FeatureNetwork, named
from audit.embeddings.lpips import Lpips
from audit.embeddings.resolve import check_word
from audit.errors import DataError
from audit.generator.protocol import Generator, check_fits
from audit.generator.stylegan2.losses import logistic
from audit.inversion.adam import cosine
from audit.inversion.codes import candidate_codes, spread
from audit.inversion.encoder import FORMAT, Encoder
from audit.inversion.loss import distance, squared_error, targets_of
from audit.inversion.pivot import distance_to_w
from audit.runtime.progress import stage_progress
from audit.runtime.seeds import stage_generator, stage_seed
from audit.storage.checkpoint import Resumable, fingerprint
from audit.storage.files import atomic_write_history
from audit.storage.keys import hash_tensor
from audit.training.generator.config import portable
from audit.training.generator.stream import read_uint8
from audit.training.shared.card import save_weights, write_card

R1_INTERVAL = 16
HELD_OUT = 256


def _similarity_word(value: str) -> str:
    return check_word(value, "similarity", ("auto", "lpips", "none"))


class EncoderTrainConfig(Training):
    """What `spruce-audit train encoder CONFIG.toml` may say."""

    split: str | None = Field(None, description="split to learn from; default: data.calibration_split, else train")
    generator: Weights = Field("shipped:phantom", description="the generator whose codes are learnt")
    generator_format: str = Field("auto", min_length=1, description="as generator.format of an audit")
    seed: int = Field(0, ge=0, description="everything that is drawn at random follows from it")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' …")
    width: int = Field(64, ge=16, multiple_of=16, description="feature maps at 16x16 and below")
    steps: int = Field(8000, ge=1, description="length of the training")
    batch_size: int = Field(16, ge=2, description="images per step")
    lr: float = Field(1e-3, gt=0, description="learning rate")
    generated: float = Field(0.5, ge=0, lt=1, description="share of a batch that the generator draws (code known)")
    progressive_from: float = Field(0.2, ge=0, le=1, description="share of the steps after which offsets unlock")
    progressive_to: float = Field(0.6, ge=0, le=1, description="share of the steps at which all are unlocked")
    l2_weight: float = Field(1.0, ge=0, description="weight of the mean squared error")
    perceptual_weight: float = Field(0.1, ge=0, description="weight of the perceptual distance")
    similarity: Annotated[str, AfterValidator(_similarity_word)] = Field(
        "auto",
        description="network of the perceptual and the similarity term: auto (phantom-factors for the phantom, else "
        "discriminator), phantom-factors, discriminator, lpips (no similarity term), none, or the .safetensors of a "
        "domain embedding",
    )
    similarity_weight: float = Field(0.01, ge=0, description="weight of the likeness of embeddings")
    latent_weight: float = Field(0.01, ge=0, description="squared error of known codes, in units of their spread")
    edit_weight: float = Field(1.0, ge=0, description="weight of the two terms that keep codes editable")
    delta_weight: float = Field(1e-3, ge=0, description="mean square of the offsets, in units of the codes' spread")
    adversarial_weight: float = Field(1e-3, ge=0, description="weight of the latent discriminator")
    discriminator_lr: float = Field(2e-4, gt=0, description="learning rate of the latent discriminator")
    r1_gamma: float = Field(10.0, ge=0, description="weight of its R1 term")
    snapshot_steps: int = Field(500, ge=1, description="steps between two snapshots")

    @model_validator(mode="after")
    def _ordered(self) -> "EncoderTrainConfig":
        if self.progressive_from > self.progressive_to:
            raise ValueError("progressive_from must not be above progressive_to")
        return self

    def unlocked(self, step: int, offsets: int) -> int:
        """How many of `offsets` are in use at `step`."""
        begin, end = self.progressive_from * self.steps, self.progressive_to * self.steps
        if step >= end:
            return offsets
        return max(0, int((step - begin) / (end - begin) * offsets))


class LatentDiscriminator(nn.Sequential):
    """Codes `[N, w_dim]` in units of their spread to logits `[N, 1]`."""

    def __init__(self, w_dim: int, width: int = 128):
        super().__init__(nn.Linear(w_dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))


class _State(Resumable):
    """Everything that a resumed run needs."""

    _modules = ("encoder", "critic", "encoder_opt", "critic_opt")
    _plain = ("step", "seconds", "history")

    def __init__(self, config: EncoderTrainConfig, generator: Generator, device: torch.device):
        codes = candidate_codes(generator, config.seed)
        # Initial weights come from a forked global stream: torch's initialisers take no generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage_seed(config.seed, "encoder initial weights"))
            self.encoder = Encoder(
                generator.resolution, generator.channels, generator.num_ws, generator.w_dim, config.width,
                generator.weights_sha256,
            )  # fmt: skip
            self.critic = LatentDiscriminator(generator.w_dim)
        self.encoder.mean.copy_(codes.mean(0))
        self.encoder.unit.fill_(spread(codes))
        self.encoder.to(device)
        self.critic.to(device)
        self.encoder_opt = torch.optim.Adam(self.encoder.parameters(), lr=config.lr)
        self.critic_opt = torch.optim.Adam(self.critic.parameters(), lr=config.discriminator_lr, betas=(0.0, 0.99))
        self.rng = stage_generator(config.seed, "encoder training")
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []


def _run_key(
    config: EncoderTrainConfig, generator_sha256: str, images: Tensor, perceptual: FeatureNetwork | Lpips | None
) -> str:
    """Fingerprint of a run; its steps belong to it, because learning rate and unlocking are shares of them."""
    inputs = {
        "settings": config.model_dump(mode="json", exclude={"data", "split", "generator", "device", "similarity"}),
        "generator": generator_sha256,
        "images": hash_tensor(images),
        "perceptual": None if perceptual is None else perceptual.weights_sha256,
    }
    return fingerprint(json.dumps(inputs, sort_keys=True))


def train_encoder(
    config: EncoderTrainConfig,
    generator: Generator,
    dataset: AuditSet,
    out: Path,
    perceptual: FeatureNetwork | Lpips | None,
    device: torch.device,
) -> Path:
    """Train an encoder for `generator` on the images of `dataset`; returns `out/encoder.safetensors`.

    Beside it its card `encoder.json`, `history.jsonl` and `checkpoint.pt`, from which an interrupted run goes on. A few
    images (5 %, at most 256) are held out for the card. Raises GeneratorError if sizes differ, DataError if there
    are too few images, ConfigError if `out` holds a run of another configuration or for another generator.
    """
    check_fits(generator, dataset.image_shape)
    images = read_uint8(dataset)
    order = torch.randperm(len(images), generator=stage_generator(config.seed, "encoder held out"))
    held = min(HELD_OUT, len(images) // 20)
    if held == 0 or len(images) - held < config.batch_size:
        needed = max(20, config.batch_size + held)
        raise DataError(f"{dataset.source} has {len(images)} images to learn from where at least {needed} are needed.")
    held_out, real = images[order[:held]], images[order[held:]]
    out.mkdir(parents=True, exist_ok=True)
    state = _State(config, generator, device)
    checkpoint = out / "checkpoint.pt"
    key = _run_key(config, state.encoder.generator_sha256, images, perceptual)
    state.resume(checkpoint, key)
    with stage_progress("encoder (steps)", config.steps) as advance:
        advance(state.step)
        while state.step < config.steps:
            began = time.monotonic()
            until = min(config.steps, state.step + config.snapshot_steps)
            sums: dict[str, float] = {}
            steps = until - state.step
            while state.step < until:
                for k, v in _step(state, config, generator, real, perceptual, device).items():
                    sums[k] = sums.get(k, 0.0) + v
                advance()
            state.seconds += time.monotonic() - began
            row = {"step": float(state.step)} | {k: v / steps for k, v in sums.items()}
            state.history.append(row | held_out_errors(state.encoder, generator, held_out, device))
            # First what the last checkpoint stands for: a run killed in between makes it again, and not nothing.
            _write(state, config, out, held, perceptual)
            state.save(checkpoint, key)
    return out / "encoder.safetensors"


def held_out_errors(encoder: Encoder, generator: Generator, images: Tensor, device: torch.device) -> dict[str, float]:
    """Mean squared error on uint8 images that the encoder has not seen, and the distance of their codes to W."""
    error, away = [], []
    with torch.no_grad():
        for part in images.split(64):
            pixels = part.to(device).float() / 255
            ws = encoder(pixels)
            error.append(squared_error(generator.images(ws), pixels))
            away.append(distance_to_w(ws, encoder.mean, float(encoder.unit)))
    return {"held_out_mse": torch.cat(error).mean().item(), "held_out_distance_to_w": torch.cat(away).mean().item()}


def _write(
    state: _State, config: EncoderTrainConfig, out: Path, held: int, perceptual: FeatureNetwork | Lpips | None
) -> None:
    last = state.history[-1]
    card = {
        "generator_sha256": state.encoder.generator_sha256,
        "seed": config.seed,
        "steps": state.step,
        "data": Path(config.data.path).name,
        "held_out": {"n": held, "mse": last["held_out_mse"], "distance_to_w": last["held_out_distance_to_w"]},
        "similarity": None if perceptual is None else named(perceptual).model_dump(),
        "training_seconds": round(state.seconds),
        "config": portable(config, "generator", "similarity"),
    }
    header = {
        "format": FORMAT,
        "encoder": json.dumps(state.encoder.settings),
        "generator_sha256": state.encoder.generator_sha256,
        "card": json.dumps(card),
    }
    save_weights(state.encoder.state_dict(), header, out / "encoder.safetensors")
    write_card(out / "encoder.safetensors", card)
    atomic_write_history(out / "history.jsonl", state.history)


def _step(
    state: _State,
    config: EncoderTrainConfig,
    generator: Generator,
    real: Tensor,
    perceptual: FeatureNetwork | Lpips | None,
    device: torch.device,
) -> dict[str, float]:
    """One update of the encoder and one of the latent discriminator."""
    encoder, rng = state.encoder, state.rng
    drawn_images = int(config.batch_size * config.generated)
    rows = torch.randint(len(real), (config.batch_size - drawn_images,), generator=rng)
    images = real[rows].to(device).float() / 255
    known = generator.random_codes(drawn_images, rng)
    if drawn_images:
        with torch.no_grad():
            images = torch.cat([images, generator.images(known[:, None].expand(-1, generator.num_ws, -1))])
    for group in state.encoder_opt.param_groups:
        group["lr"] = config.lr * cosine(state.step, config.steps)
    ws = encoder(images, config.unlocked(state.step, encoder.num_ws - 1))
    scaled = (ws - encoder.mean) / encoder.unit
    drawn = generator.draw(ws)
    features = None if isinstance(perceptual, Lpips) else perceptual
    weighted, mse = distance(drawn, targets_of(images, features), features, config.l2_weight, config.perceptual_weight)
    loss = weighted.mean()
    out = {"mse": mse.mean().item()}
    if isinstance(perceptual, Lpips):
        lpips = perceptual.distance(drawn.clamp(0, 1), images).mean()
        loss = loss + config.perceptual_weight * lpips
        out["lpips"] = lpips.item()
    if features is not None and config.similarity_weight > 0:
        with torch.no_grad():
            aim = features.embed(images)
        similarity = 1 - F.cosine_similarity(features.embed(drawn.clamp(0, 1)), aim).mean()
        loss = loss + config.similarity_weight * similarity
        out["similarity"] = similarity.item()
    if drawn_images:
        truth = (known - encoder.mean) / encoder.unit
        latent = (scaled[-drawn_images:] - truth[:, None]).square().mean()
        loss = loss + config.latent_weight * latent
        out["latent"] = latent.item()
    offsets = (scaled[:, 1:] - scaled[:, :1]).square().mean()
    adversarial = logistic(state.critic(scaled.flatten(0, 1)))
    loss = loss + config.edit_weight * (config.delta_weight * offsets + config.adversarial_weight * adversarial)
    state.encoder_opt.zero_grad(set_to_none=True)
    loss.backward(inputs=list(encoder.parameters()))
    nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
    state.encoder_opt.step()
    out |= {"loss": loss.item(), "offsets": offsets.item()}
    if config.adversarial_weight > 0:
        out["critic"] = _critic_step(state, config, generator, scaled.detach().flatten(0, 1))
    state.step += 1
    return out


def _critic_step(state: _State, config: EncoderTrainConfig, generator: Generator, encoded: Tensor) -> float:
    codes = generator.random_codes(len(encoded), state.rng)
    real = ((codes - state.encoder.mean) / state.encoder.unit).requires_grad_()
    logits = state.critic(real)
    loss = logistic(logits) + logistic(-state.critic(encoded))
    if config.r1_gamma > 0 and state.step % R1_INTERVAL == 0:
        (gradient,) = torch.autograd.grad(logits.sum(), real, create_graph=True)
        loss = loss + config.r1_gamma / 2 * R1_INTERVAL * gradient.square().sum(1).mean()
    state.critic_opt.zero_grad(set_to_none=True)
    loss.backward(inputs=list(state.critic.parameters()))
    state.critic_opt.step()
    return loss.item()
