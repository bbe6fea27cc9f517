"""Training of the generator: non-saturating loss, lazy R1 and path-length regularisation, EMA, ADA, best by FID.

Source: Karras et al. 2020 (StyleGAN2: sections 3.1, 3.2, appendix B) and Karras et al. 2020 (ADA: section 3).
A run can be killed at any time and goes on from its last checkpoint with the same random streams.
"""

import copy
import json
import time
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from audit.checkpoint import Resumable, fingerprint
from audit.config import Section, Training, Weights, load_training
from audit.data.audit_set import AuditSet
from audit.data.load import load_data, training_split
from audit.embedded import path as embedded_path
from audit.environment import choose_device
from audit.errors import DataError, GeneratorError
from audit.generator.augment import adapt, augment
from audit.generator.grid import sample_grid, save_grid
from audit.generator.load import LoadedGenerator, load_generator, save_generator
from audit.generator.networks import (
    Discriminator,
    Generator,
    average_parameters,
    logistic,
    network_range,
    path_lengths,
)
from audit.metrics.canonical import available, load_inception
from audit.metrics.embedding import Embedder, embed_all
from audit.metrics.fid import frechet_distance
from audit.metrics.phantom_factors import load_phantom_factors
from audit.progress import stage_progress
from audit.seeds import stage_generator
from audit.store import atomic_write_text, hash_tensor

GRID_ROWS, GRID_COLUMNS = 6, 8


class GeneratorTrainConfig(Training):
    """What `spruce-audit train generator CONFIG.toml` may say."""

    split: str | None = Field(None, description="split to learn from; default: data.calibration_split, else train")
    seed: int = Field(0, ge=0)
    device: str = "auto"
    z_dim: int = Field(64, ge=4)
    w_dim: int = Field(64, ge=4)
    channel_base: int = Field(1024, ge=64)
    channel_max: int = Field(32, ge=8)
    mapping_layers: int = Field(2, ge=1)
    kimg: float = Field(400, gt=0, description="thousands of real images shown to the discriminator")
    batch_size: int = Field(32, ge=4)
    lr: float = Field(2.5e-3, gt=0)
    r1_gamma: float = Field(0.5, ge=0)
    r1_interval: int = Field(16, ge=1)
    path_length_weight: float = Field(2.0, ge=0)
    path_length_interval: int = Field(8, ge=1)
    style_mixing: float = Field(0.9, ge=0, le=1, description="probability that an image takes styles of two z")
    ema_kimg: float = Field(5.0, gt=0, description="half-life of the averaged generator")
    augmentation: Literal["ada", "none"] = "ada"
    ada_target: float = Field(0.6, gt=0, lt=1)
    ada_kimg: float = Field(100, gt=0, description="thousands of images in which p can cross [0, 1]")
    start_from: Weights | None = Field(None, description="generator to fine-tune")
    freeze_discriminator: int = Field(0, ge=0, description="finest discriminator blocks kept fixed (Freeze-D)")
    snapshot_kimg: float = Field(20, gt=0)
    fid_images: int = Field(2000, ge=50)
    fid_embedding: Literal["auto", "phantom-factors", "inception", "none"] = Field(
        "auto", description="auto: phantom-factors for the phantom, else Inception where its weights are, else none"
    )
    bfloat16: bool = Field(False, description="autocast the convolutions (faster where the processor has it)")

    @model_validator(mode="after")
    def _freezing_needs_weights(self) -> "GeneratorTrainConfig":
        if self.freeze_discriminator > 0 and self.start_from is None:
            raise ValueError("freeze_discriminator keeps blocks of a trained discriminator: name it in start_from")
        return self


def load_generator_train_config(path: str | Path) -> GeneratorTrainConfig:
    """Read a training's TOML file; relative paths are made absolute against its folder. Raises ConfigError."""
    return load_training(GeneratorTrainConfig, path, "start_from")


def fid_network(config: GeneratorTrainConfig, device: torch.device) -> Embedder | None:
    """The embedding that snapshots are chosen by; None: the last average is kept. Raises MetricError."""
    wanted = config.fid_embedding
    if wanted == "phantom-factors" or (wanted == "auto" and config.data.is_phantom):
        return load_phantom_factors(embedded_path("embeddings", "phantom-factors")).to(device)
    if wanted == "inception" or (wanted == "auto" and not isinstance(available()["inception-v3-fid"], str)):
        return load_inception().to(device)
    return None


def run_generator_training(config: GeneratorTrainConfig, out: Path) -> Path:
    """Load the data that `config` names, train, and return the path of the generator."""
    device = choose_device(config.device)
    data = load_data(config.data, config.seed)
    split = training_split(config.data, data, config.split)
    return train_generator(config, data.split(split), out, fid_network(config, device), device)


class _State(Resumable):
    """Everything that a resumed run needs."""

    _modules = ("g", "d", "ema", "g_opt", "d_opt")
    _plain = ("p", "path_mean", "images", "step", "best_fid", "seconds", "history", "signs")

    def __init__(self, config: GeneratorTrainConfig, image_shape: tuple[int, int, int], device: torch.device):
        channels, size, width = image_shape
        if size != width or size & (size - 1) or not 16 <= size <= 1024:
            raise GeneratorError(
                f"A generator needs square images whose side is a power of two from 16 to 1024, not {size}x{width}: "
                "set data.image_size."
            )
        loaded = None if config.start_from is None else load_generator(config.start_from)
        self.start_sha256 = None if loaded is None else loaded.sha256
        # Initial weights come from a forked global stream: torch's initialisers take no generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.g, self.d = self._networks(config, loaded, channels, size)
        self.g.to(device).train()
        self.d.to(device).train()
        self.ema = copy.deepcopy(self.g).eval().requires_grad_(False)
        self.g_opt = _adam(self.g, config.lr, config.path_length_interval if config.path_length_weight else None)
        self.d_opt = _adam(self.d, config.lr, config.r1_interval if config.r1_gamma else None)
        self.rng = stage_generator(config.seed, "generator training", device)
        self.p, self.path_mean, self.images, self.step = 0.0, 0.0, 0, 0
        self.signs: list[float] = []
        self.best_fid = float("inf")
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0

    @staticmethod
    def _networks(
        config: GeneratorTrainConfig, loaded: LoadedGenerator | None, channels: int, size: int
    ) -> tuple[Generator, Discriminator]:
        if loaded is not None:
            g, d = loaded.generator.requires_grad_(True), loaded.discriminator
            if d is None or (g.channels, g.resolution) != (channels, size):
                raise GeneratorError(
                    f"Generator '{config.start_from}' cannot be fine-tuned on {size}x{size} images with {channels} "
                    "channel(s): it has another size or no discriminator."
                )
            d.requires_grad_(True)
            for res in d.resolutions[: config.freeze_discriminator]:
                getattr(d, f"b{res}").requires_grad_(False)
            return g, d
        sizes = {"channel_base": config.channel_base, "channel_max": config.channel_max}
        g = Generator(config.z_dim, config.w_dim, size, channels, mapping_layers=config.mapping_layers, **sizes)
        return g, Discriminator(size, channels, **sizes)


def _run_key(
    config: GeneratorTrainConfig, start_sha256: str | None, real: Tensor, embedding: Embedder | None,
    device: torch.device,
) -> str:  # fmt: skip
    """Fingerprint of a run but its length: files stand by what they hold; a stream is of one kind of device."""
    inputs = {
        "settings": config.model_dump(
            mode="json", exclude={"kimg", "data", "split", "start_from", "fid_embedding", "device"}
        ),
        "images": hash_tensor(real),
        "start": start_sha256,
        "embedding": None if embedding is None else embedding.weights_sha256,
        "device": device.type,
    }
    return fingerprint(json.dumps(inputs, sort_keys=True))


def _adam(network: nn.Module, lr: float, lazy_interval: int | None) -> torch.optim.Adam:
    """Adam of the paper; a lazy regulariser's extra steps are compensated (StyleGAN2 appendix B)."""
    ratio = 1.0 if lazy_interval is None else lazy_interval / (lazy_interval + 1)
    trainable = [p for p in network.parameters() if p.requires_grad]
    return torch.optim.Adam(trainable, lr=lr * ratio, betas=(0.0, 0.99**ratio), eps=1e-8)


def _codes(g: Generator, n: int, mixing: float, rng: torch.Generator) -> Tensor:
    """Draw w for `n` images, mixing two styles at a random layer, and update the running mean of w."""
    z = torch.randn(2, n, g.z_dim, generator=rng, device=rng.device)
    ws = g.mapping(z[0])
    with torch.no_grad():
        g.mapping.w_avg.lerp_(ws[:, 0].detach().float().mean(0), 1 - 0.998)
    if mixing > 0:
        mixed = torch.rand(n, 1, generator=rng, device=rng.device) < mixing
        cut = torch.randint(1, g.num_ws, (n, 1), generator=rng, device=rng.device)
        late = torch.arange(g.num_ws, device=rng.device)[None] >= cut
        ws = torch.where((mixed & late)[..., None], g.mapping(z[1]), ws)
    return ws


def _draw_real(images: Tensor, n: int, rng: torch.Generator, device: torch.device) -> Tensor:
    rows = torch.randint(len(images), (n,), generator=rng, device=rng.device).cpu()
    return network_range(images[rows].to(device).float() / 255)


def portable(config: Section, *paths: str) -> dict[str, Any]:
    """Return a training's settings for its card: `data.path` and the keys `paths` by file name, without folders."""
    content = config.model_dump(mode="json")
    content["data"]["path"] = Path(content["data"]["path"]).name
    return content | {key: Path(content[key]).name for key in paths if content[key] is not None}


def read_uint8(dataset: AuditSet, batch_size: int = 256) -> Tensor:
    """Read a whole set as uint8 `[N, C, H, W]`: what a discriminator sees again and again, at a byte a pixel."""
    out = torch.empty(len(dataset), *dataset.image_shape, dtype=torch.uint8)
    for images, _, rows in dataset.batches(batch_size):
        out[rows] = (images * 255).round().to(torch.uint8)
    return out


def generator_fid(g: Generator, real_embedding: Tensor, network: Embedder, n: int, seed: int) -> float:
    """FID of `n` drawn images against embedded real ones, with the same z on every call."""
    rng = stage_generator(seed, "generator fid")
    device = g.mapping.w_avg.device
    drawn = []
    with torch.no_grad():
        for start in range(0, n, 100):
            z = torch.randn(min(100, n - start), g.z_dim, generator=rng).to(device)
            drawn.append(network.embed(g.images(g.mapping(z))).float().cpu())
    return frechet_distance(torch.cat(drawn), real_embedding)


def train_generator(
    config: GeneratorTrainConfig, dataset: AuditSet, out: Path, embedding: Embedder | None, device: torch.device
) -> Path:
    """Train on the images of `dataset` and return the path of the best snapshot by FID in `embedding`.

    Without an embedding the last average is kept. Files in `out`: `generator.safetensors`, its card
    `generator.json`, images it draws `samples.png`, `history.jsonl`, and `checkpoint.pt` to resume from. Raises
    GeneratorError for sizes that are no power of two, ConfigError if `out` holds a run of another configuration.
    """
    out.mkdir(parents=True, exist_ok=True)
    real = read_uint8(dataset)
    if len(real) < config.batch_size:
        raise DataError(f"{dataset.source} has {len(real)} images to learn from; a batch needs {config.batch_size}.")
    state = _State(config, dataset.image_shape, device)
    checkpoint, key = out / "checkpoint.pt", _run_key(config, state.start_sha256, real, embedding, device)
    state.resume(checkpoint, key)
    reference = None
    if embedding is not None:
        rows = torch.randperm(len(real), generator=stage_generator(config.seed, "fid reals"))[: config.fid_images]
        reference = embed_all(embedding, real[rows].float() / 255, 100, device)
    total = int(config.kimg * 1000)
    with stage_progress("generator (images)", total) as advance:
        advance(state.images)
        while state.images < total:
            began = time.monotonic()
            until = min(total, state.images + int(config.snapshot_kimg * 1000))
            sums: dict[str, float] = {}
            steps = 0
            while state.images < until:
                for k, v in _step(state, config, real, device).items():
                    sums[k] = sums.get(k, 0.0) + v
                steps += 1
                advance(config.batch_size)
            state.seconds += time.monotonic() - began
            row = {k: v / steps for k, v in sums.items()} | {"kimg": state.images / 1000, "p": state.p}
            row["images_per_second"] = steps * config.batch_size / (time.monotonic() - began)
            _snapshot(state, config, row, reference, embedding, out)
            state.history.append(row)
            state.save(checkpoint, key)
            atomic_write_text(out / "history.jsonl", "".join(_json_line(r) for r in state.history))
    return out / "generator.safetensors"


def _json_line(row: dict[str, float]) -> str:
    return json.dumps({k: round(v, 5) for k, v in row.items()}) + "\n"


def _snapshot(
    state: _State, config: GeneratorTrainConfig, row: dict[str, float], reference: Tensor | None,
    embedding: Embedder | None, out: Path,
) -> None:  # fmt: skip
    """Score the average and keep it if it is the best so far."""
    card: dict[str, Any] = {"seed": config.seed, "kimg": state.images / 1000}
    card["data"] = Path(config.data.path).name
    if embedding is not None and reference is not None:
        row["fid"] = generator_fid(state.ema, reference, embedding, config.fid_images, config.seed)
        if row["fid"] >= state.best_fid:
            return
        state.best_fid = row["fid"]
        half = len(reference) // 2
        card["fid"] = {
            "value": row["fid"],
            "floor_half_vs_half": frechet_distance(reference[:half], reference[half:]),
            "n": config.fid_images,
            "embedding": {"name": embedding.name, "weights_sha256": embedding.weights_sha256},
        }
    card["training_seconds"] = round(state.seconds)
    card["config"] = portable(config, "start_from")
    save_generator(out / "generator.safetensors", state.ema, state.d, {"card": card})
    atomic_write_text(out / "generator.json", json.dumps(card, indent=2) + "\n")
    save_samples(state.ema, config.seed, out / "samples.png")


def _step(state: _State, config: GeneratorTrainConfig, real: Tensor, device: torch.device) -> dict[str, float]:
    """One update of the discriminator and one of the generator."""
    n, g, d, rng = config.batch_size, state.g, state.d, state.rng
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16)
    out: dict[str, float] = {}

    g.requires_grad_(False)
    state.d_opt.zero_grad(set_to_none=True)
    with autocast:
        with torch.no_grad():
            fake = g.synthesis(_codes(g, n, config.style_mixing, rng), "random", generator=rng)
        shown = _draw_real(real, n, rng, device)
        fake_logits = d(augment(fake, state.p, rng))
        real_logits = d(augment(shown, state.p, rng))
        loss = logistic(-fake_logits) + logistic(real_logits)
    loss.backward()
    out["d_loss"] = loss.item()
    state.signs.append(real_logits.detach().float().sign().mean().item())
    if config.r1_gamma and state.step % config.r1_interval == 0:
        images = shown.detach().requires_grad_()
        logits = d(augment(images, state.p, rng))
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        penalty = gradient.square().sum((1, 2, 3)).mean()
        (penalty * (config.r1_gamma / 2 * config.r1_interval)).backward()
        out["r1"] = penalty.item() * config.r1_interval
    state.d_opt.step()

    g.requires_grad_(True)
    d.requires_grad_(False)
    state.g_opt.zero_grad(set_to_none=True)
    with autocast:
        fake = g.synthesis(_codes(g, n, config.style_mixing, rng), "random", generator=rng)
        loss = logistic(d(augment(fake, state.p, rng)))
    loss.backward()
    out["g_loss"] = loss.item()
    if config.path_length_weight and state.step % config.path_length_interval == 0:
        ws = _codes(g, max(n // 2, 1), config.style_mixing, rng)
        lengths = path_lengths(g.synthesis(ws, "random", generator=rng), ws, rng)
        state.path_mean += 0.01 * (lengths.mean().item() - state.path_mean)
        penalty = (lengths - state.path_mean).square().mean()
        (penalty * (config.path_length_weight * config.path_length_interval)).backward()
        out["path"] = penalty.item() * config.path_length_interval
    state.g_opt.step()
    for name, parameter in d.named_parameters():
        parameter.requires_grad_(not _frozen(d, name, config.freeze_discriminator))

    state.images += n
    state.step += 1
    half_life = min(config.ema_kimg * 1000, state.images * 0.05)  # the warm-up of the ADA paper's `ema_rampup`
    average_parameters(state.ema, g, 0.5 ** (n / max(half_life, 1e-8)))
    if config.augmentation == "ada" and len(state.signs) == 4:
        mean_sign = sum(state.signs) / 4
        state.p = adapt(state.p, mean_sign, 4 * n, config.ada_target, config.ada_kimg * 1000)
        state.signs.clear()
        out["r_t"] = mean_sign * 4
    return out


def _frozen(d: Discriminator, name: str, blocks: int) -> bool:
    return any(name.startswith(f"b{res}.") for res in d.resolutions[:blocks])


def save_samples(g: Generator, seed: int, path: Path) -> None:
    """Write a PNG of 6 x 8 images that `g` draws, with the same z on every call."""
    save_grid(sample_grid(g, GRID_ROWS, GRID_COLUMNS, seed), path)
