"""Fit the mapping network of a trained generator to the moments of real images; the synthesis network stays as it is.

After an adversarial training the means of drawn images are off by some hundredths of a standard deviation, and so are
the deviations (`audit.training.generator.moments`). The mapping network alone decides how often each image is drawn, so
only it is trained, on features that need neither labels nor the embedding by which the result is measured. For every z
it is held near the code that it gave before, because properties that no feature measures would drift otherwise.
"""

import copy
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from audit.data.audit_set import AuditSet
from audit.data.describe import note_on_training_data
from audit.data.load import load_images, training_split
from audit.embeddings.embedding import Embedder, Pixels, named
from audit.embeddings.resolve import Request, resolve
from audit.errors import ConfigError, DataError
from audit.generator.files.infer import mean_code
from audit.generator.files.load import LoadedStyleGAN2, load_generator, save_generator
from audit.generator.grid import sample_grid, save_grid
from audit.generator.protocol import check_fits
from audit.runtime.environment import choose_device
from audit.runtime.progress import stage_progress
from audit.runtime.seeds import stage_generator
from audit.storage.checkpoint import Resumable, fingerprint
from audit.storage.files import atomic_write_history
from audit.training.generator.mapping_config import FitMappingConfig, portable_fit
from audit.training.generator.moments import Target, follow, gap, gap_loss, moments
from audit.training.generator.snapshot import (
    EMBED_BATCH,
    GRID_COLUMNS,
    GRID_IMAGES,
    Reference,
    compare,
    embed_drawn,
    fid_network,
    quality,
    reference_of,
)
from audit.training.generator.state import one_hot
from audit.training.generator.stream import Reals
from audit.training.shared.card import write_card

PIXELS_SIDE = 8
MEASURED = 20_000
"""Drawn images on which the card's gaps rest."""
GAP_STAGE = "mapping gap"
SPREAD_CODES = 10_000
IMAGES_PER_DIRECTION = 10
"""Fewer leave a covariance that is mostly chance."""


def _network(name: str, loaded: LoadedStyleGAN2, device: torch.device) -> Embedder:
    if name == "pixels":
        return Pixels(PIXELS_SIDE)
    return resolve(name, Request("features", device, loaded=loaded), "vectors")


def run_mapping_fit(config: FitMappingConfig, out: Path) -> Path:
    """Load generator, networks and data that `config` names, fit, and return the path of the generator."""
    device = choose_device(config.device)
    loaded = load_generator(config.generator, device)
    networks = [_network(name, loaded, device) for name in config.features]
    data = load_images(config.data, config.seed)
    dataset = data.split(training_split(config.data, data, config.split))
    note_on_training_data(dataset)
    embedding = fid_network(config.fid_embedding, config.data.is_phantom, device)
    return fit_mapping(config, loaded, dataset, out, networks, embedding)


class _Fit(Resumable):
    """What is fitted, to what, and all that a resumed run needs."""

    _modules = ("mapping", "optimiser", "schedule")
    _plain = ("mean", "covariance", "step", "seconds", "history")

    def __init__(
        self, config: FitMappingConfig, loaded: LoadedStyleGAN2, dataset: AuditSet, networks: Sequence[Embedder],
        device: torch.device,
    ):  # fmt: skip
        self.g, self.networks, self.device = loaded.generator, networks, device
        if device.type == "cpu":  # convolutions of few channels run faster where a pixel's channels lie together
            self.g.to(memory_format=torch.channels_last)
        self.labels = dataset.row_labels
        self.target = _target(dataset, networks, config.least_share, device)
        self.first = copy.deepcopy(self.g.mapping)
        self.mapping = self.g.mapping.requires_grad_(True)
        self.optimiser = torch.optim.Adam(self.mapping.parameters(), lr=config.lr, betas=(0.9, 0.99))
        self.steps = max(1, round(config.kimg * 1000 / config.batch_size))
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimiser, self.steps)
        self.rng = stage_generator(config.seed, "mapping fit")
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, float]] = []
        self.mean, self.covariance = self.measure(round(config.window_kimg * 1000), self.rng)
        with torch.no_grad():
            z, c = self.inputs(SPREAD_CODES, stage_generator(config.seed, "mapping spread"))
            self.unit = self.first(z, c=c)[:, 0].var(0).mean()

    def inputs(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Normal z `[n, z_dim]`, and class vectors `[n, c_dim]` as often as the data have them, if any."""
        z = torch.randn(n, self.g.z_dim, generator=rng).to(self.device)
        if not self.g.c_dim:
            return z, None
        labels = self.labels[torch.randint(len(self.labels), (n,), generator=rng)]
        return z, one_hot(labels.to(self.device), self.g.c_dim)

    def drawn(self, ws: Tensor) -> Tensor:
        """Features in the target's units `[n, k]` of the images that `ws` draw."""
        return self.target.units(_features(self.networks, self.g.images(ws)))

    @torch.no_grad()
    def measure(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Mean `[k]` and covariance `[k, k]` of at least `n` drawn images."""

        def batch() -> Tensor:
            z, c = self.inputs(EMBED_BATCH, rng)
            return self.drawn(self.mapping(z, c=c))

        mean, covariance, _ = moments(batch() for _ in range(-(-n // EMBED_BATCH)))
        return mean.float().to(self.device), covariance.float().to(self.device)

    def gaps(self, mean: Tensor, covariance: Tensor) -> dict[str, float]:
        """The distance that moments of drawn images are away from the target's, in words of a card."""
        parts = gap(mean, covariance, self.target.covariance)
        return {"mean_gap": float(parts[0]), "covariance_gap": float(parts[1])}

    def update(self, batch_size: int, share: float, anchor: float) -> None:
        """One step of the mapping network, and of the running moments by `share`."""
        z, c = self.inputs(batch_size, self.rng)
        ws = self.mapping(z, c=c)
        drawn = self.drawn(ws)
        follow(drawn.detach(), self.mean, self.covariance, share)
        loss = gap_loss(drawn, self.mean, self.covariance, self.target.covariance)
        if anchor:
            with torch.no_grad():
                before = self.first(z, c=c)
            loss = loss + anchor * (ws - before)[:, 0].square().sum(1).mean() / self.unit
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        self.step += 1

    def resume(self, path: Path, key: str) -> None:
        """Take everything from the checkpoint `path` if it is there; raises ConfigError as `load_checkpoint` does."""
        super().resume(path, key)
        self.mean, self.covariance = self.mean.to(self.device), self.covariance.to(self.device)


def _features(networks: Sequence[Embedder], images: Tensor) -> Tensor:
    return torch.cat([network.embed(images).float() for network in networks], 1)


def _target(dataset: AuditSet, networks: Sequence[Embedder], least_share: float, device: torch.device) -> Target:
    """Moments of all images of `dataset`. Raises DataError where they are too few for that many directions."""
    with torch.no_grad():
        first = dataset.images(torch.arange(1)).to(device)
        sizes = [network.embed(first).shape[1] for network in networks]
        batches = (_features(networks, images.to(device)) for images, _, _ in dataset.batches(EMBED_BATCH))
        mean, covariance, _ = moments(batches)
    target = Target.of(mean, covariance, sizes, least_share).to(device)
    if len(dataset) < IMAGES_PER_DIRECTION * sum(target.sizes):
        raise DataError(
            f"{dataset.source} has {len(dataset)} images, and the covariance of {sum(target.sizes)} directions takes "
            f"{IMAGES_PER_DIRECTION} for each: raise least_share or name fewer features."
        )
    return target


def _run_key(config: FitMappingConfig, loaded: LoadedStyleGAN2, reals: Reals, networks: Sequence[Embedder]) -> str:
    """Fingerprint of a run; its length belongs to it, because the learning rate falls over it."""
    run_only = {"data", "split", "generator", "features", "device", "fid_embedding", "fid_images", "snapshot_kimg"}
    inputs = {
        "settings": config.model_dump(mode="json", exclude=run_only),
        "generator": loaded.sha256,
        "images": reals.fingerprint(),
        "features": [named(network).model_dump() for network in networks],
    }
    return fingerprint(json.dumps(inputs, sort_keys=True))


def _measured(loaded: LoadedStyleGAN2, reference: Reference | None, seed: int) -> dict[str, Any]:
    if reference is None:
        return {}
    drawn = embed_drawn(loaded.generator, reference.network, reference.labels, seed)
    return quality(compare(drawn, reference.real), reference)


def fit_mapping(
    config: FitMappingConfig, loaded: LoadedStyleGAN2, dataset: AuditSet, out: Path, networks: Sequence[Embedder],
    embedding: Embedder | None,
) -> Path:  # fmt: skip
    """Bring features' moments of drawn images to those of all images of `dataset`; returns `out/generator.safetensors`.

    Beside it its card `generator.json` (the generator's own, `mapping` added, its FID in `embedding` renewed), images
    it draws `samples.png`, `history.jsonl` and `checkpoint.pt`, from which an interrupted run goes on. `loaded` is
    changed. The embedding chooses nothing: the last weights are kept. Raises GeneratorError if sizes differ,
    MetricError if a network does not read such images, DataError for too few of them, ConfigError if the embedding is
    one of the features, the run diverges, or `out` holds one of another configuration.
    """
    check_fits(loaded.generator, dataset.image_shape)
    device = loaded.generator.mean_code.device
    if embedding is not None and embedding.weights_sha256 in {network.weights_sha256 for network in networks}:
        raise ConfigError("fid_embedding has the weights of one of the features: name another, or none.")
    with Reals(dataset, EMBED_BATCH, config.seed, device, cache_mb=0) as reals:
        key = _run_key(config, loaded, reals, networks)
        reference = None
        if embedding is not None:
            reference = reference_of(reals, embedding, config.fid_images, config.seed, device)
    before = _measured(loaded, reference, config.seed)
    fit = _Fit(config, loaded, dataset, networks, device)
    out.mkdir(parents=True, exist_ok=True)
    before = fit.gaps(*fit.measure(MEASURED, stage_generator(config.seed, GAP_STAGE))) | before
    checkpoint = out / "checkpoint.pt"
    fit.resume(checkpoint, key)
    share = 1 - 0.5 ** (config.batch_size / (config.window_kimg * 1000))
    every = max(1, round(config.snapshot_kimg * 1000 / config.batch_size))
    with stage_progress("mapping (steps)", fit.steps) as advance:
        advance(fit.step)
        while fit.step < fit.steps:
            began = time.monotonic()
            for _ in range(min(every, fit.steps - fit.step)):
                fit.update(config.batch_size, share, config.anchor)
                advance()
            fit.seconds += time.monotonic() - began
            gaps = fit.gaps(fit.mean, fit.covariance)
            if not math.isfinite(sum(gaps.values())):
                raise ConfigError(f"The moments are no longer finite after {fit.step} steps: lower lr.")
            row = {"kimg": fit.step * config.batch_size / 1000} | gaps
            fit.history.append(row)
            atomic_write_history(out / "history.jsonl", fit.history)
            fit.save(checkpoint, key)
    _write(config, loaded, fit, before, reference, out)
    return out / "generator.safetensors"


def _write(
    config: FitMappingConfig, loaded: LoadedStyleGAN2, fit: _Fit, before: dict[str, Any], reference: Reference | None,
    out: Path,
) -> None:  # fmt: skip
    g = loaded.generator.requires_grad_(False)
    g.mapping.w_avg.copy_(mean_code(copy.deepcopy(g.mapping).cpu(), g.z_dim, g.c_dim))
    measured = _measured(loaded, reference, config.seed)
    gaps = fit.gaps(*fit.measure(MEASURED, stage_generator(config.seed, GAP_STAGE)))
    fitted = {
        "generator_sha256": loaded.sha256,
        "data": Path(config.data.path).name,
        "features": [
            named(network).model_dump() | {"directions": size}
            for network, size in zip(fit.networks, fit.target.sizes, strict=True)
        ],
        "n": MEASURED,
        "before": before,
        "after": gaps | measured,
        "training_seconds": round(fit.seconds),
        "config": portable_fit(config),
    }
    card: dict[str, Any] = json.loads(loaded.metadata.get("card", "{}"))
    for stale in ("fid", "precision_recall"):  # of the generator as it was: not measured anew, they are left out
        card.pop(stale, None)
    card |= measured | {"mapping": fitted}
    grid = sample_grid(g, GRID_IMAGES, GRID_COLUMNS, config.seed)
    save_generator(out / "generator.safetensors", g, loaded.discriminator, {"card": card})
    write_card(out / "generator.safetensors", card)
    save_grid(grid, out / "samples.png")
