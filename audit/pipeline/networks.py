"""The networks behind an audit's counterfactuals: those that draw and invert images, and those that measure them."""

from dataclasses import dataclass, field
from functools import cached_property

import torch

from audit.classifiers.classifier import Classifier, weights_hash
from audit.config import AuditConfig
from audit.data.audit_set import AuditSet
from audit.embeddings.canonical import available
from audit.embeddings.embedding import Embedder, MapNetwork, named
from audit.embeddings.lpips import SMALLEST, Lpips
from audit.embeddings.resolve import Request, check_word, resolve
from audit.errors import ConfigError, MetricError
from audit.generator.protocol import LoadedGenerator, check_fits
from audit.generator.readers import read_generator
from audit.inversion.encoder import Encoder, encoder_beside, load_encoder
from audit.inversion.invert import check_method
from audit.results import NotComputed, Notice


@dataclass(frozen=True)
class Canonical:
    """A canonical metric: the name of its network's weights, what is computed, and where that is in the results."""

    weights: str
    what: str
    path: str

    def not_computed(self, why: str) -> NotComputed:
        """Return the line of the results that says why the metric is not there."""
        return NotComputed(what=self.what, why=why, paths=[self.path])


CANONICAL = {
    "inception": Canonical("inception-v3-fid", "FID in Inception-v3", "counterfactuals.fid"),
    "lpips-vgg": Canonical("lpips-v0.1-vgg", "LPIPS v0.1 (VGG-16)", "counterfactuals.lpips"),
    "clip": Canonical("clip-vit-large-patch14-336", "CMMD in CLIP ViT-L/14-336", "counterfactuals.cmmd"),
}
"""Canonical metrics by the word of the embedding that they rest on."""


@dataclass(frozen=True)
class Networks:
    """The networks that draw, invert, measure and judge.

    Realism and the judge of transfer rest on `embedding`. `perceptual` gives the perceptual distance, which inversion
    and search minimise and which is reported. `canonical` and `lpips` are there if their weights are on the machine;
    `missing` says what cannot be computed without them. `judges` are classifiers that are not audited.
    """

    loaded: LoadedGenerator
    encoder: Encoder | None
    embedding: Embedder
    perceptual: MapNetwork
    canonical: list[Embedder] = field(default_factory=list)
    lpips: Lpips | None = None
    missing: list[NotComputed] = field(default_factory=list)
    notices: list[Notice] = field(default_factory=list)
    judges: tuple[Classifier, ...] = ()

    @cached_property
    def encoder_sha256(self) -> str | None:
        """Hash of the encoder's weights; None without an encoder."""
        return None if self.encoder is None else weights_hash(self.encoder.state_dict())


def load_networks(config: AuditConfig, data: AuditSet, device: torch.device) -> Networks:
    """Load what `config` names for images like those of `data`. Raises GeneratorError or MetricError."""
    assert config.generator is not None
    loaded = read_generator(config.generator, device)
    check_fits(loaded.generator, data.image_shape)
    encoder = None
    encoder_path = config.inversion.encoder or encoder_beside(config.generator.path)
    if encoder_path is not None:
        encoder = load_encoder(encoder_path, device)
    check_method(config.inversion.method, loaded.generator, encoder)
    canonical, lpips, missing = _canonical(config.metrics.canonical, min(data.image_shape[1:]), device)

    def request(key: str) -> Request:
        return Request(key, device, config.data.is_phantom, loaded)

    embedding = resolve(config.metrics.embedding, request("metrics.embedding"), "vectors")
    perceptual = resolve(config.metrics.perceptual, request("metrics.perceptual"), "maps")
    empty = torch.zeros(1, *data.image_shape, device=device)
    # These fail here, and not after hours, if the images have a size that the network does not read.
    embedding.embed(empty)
    perceptual.maps(empty)
    notices = _notices(config, loaded, embedding, perceptual)
    return Networks(loaded, encoder, embedding, perceptual, canonical, lpips, missing, notices)


def judged_by_steering(config: AuditConfig, networks: Networks) -> list[str]:
    """Return the dotted paths of numbers that rest on the network whose distance inversion or search minimised."""
    if not (config.inversion.perceptual_weight or config.counterfactual.steering_weight):
        return []
    steering, found = named(networks.perceptual), ["counterfactuals.perceptual"]
    if networks.lpips is not None and named(networks.lpips) == steering:
        found.append("counterfactuals.lpips")
    if named(networks.embedding) == steering:
        found += ["components.realism", "counterfactuals.judges"]
    return found


def _canonical(wanted: str, side: int, device: torch.device) -> tuple[list[Embedder], Lpips | None, list[NotComputed]]:
    """Load what `metrics.canonical = wanted` asks for, for images of `side` pixels: embedders, LPIPS, what is missing.

    Raises MetricError if weights are required and not there.
    """
    if wanted == "off":
        return [], None, []
    there = available()
    absent = {word: str(there[one.weights]) for word, one in CANONICAL.items() if isinstance(there[one.weights], str)}
    missing = [CANONICAL[word].not_computed(why) for word, why in absent.items()]
    if wanted == "require" and missing:
        raise MetricError(
            f"metrics.canonical is 'require' but the weights of {', '.join(m.what for m in missing)} are not there: "
            f"run `spruce-audit weights pull {' '.join(CANONICAL[word].weights for word in absent)}`."
        )
    request = Request("metrics.canonical", device)
    embedders = [resolve(word, request, "vectors") for word in ("inception", "clip") if word not in absent]
    if "lpips-vgg" in absent:
        return embedders, None, missing
    if side < SMALLEST["vgg"]:
        missing.append(CANONICAL["lpips-vgg"].not_computed(f"images of side {side} are too small"))
        return embedders, None, missing
    lpips = resolve("lpips-vgg", request, "maps")
    assert isinstance(lpips, Lpips)
    return embedders, lpips, missing


def _notices(config: AuditConfig, loaded: LoadedGenerator, embedding: Embedder, perceptual: MapNetwork) -> list[Notice]:
    """Say what the generator's file left open, and whether the perceptual distance is no longer in the embedding."""
    found = [
        Notice(subject="generator", kind="generator-file", text=f"{note[:1].upper()}{note[1:]}.")
        for note in loaded.notes
    ]
    if config.metrics.perceptual == "auto" and named(embedding) != named(perceptual):
        text = (
            f"The perceptual distance, which inversion and search minimise, rests on '{perceptual.name}' and no longer "
            f"on '{embedding.name}', which metrics.embedding names: earlier versions found other counterfactuals with "
            "this configuration. Set metrics.perceptual to the same embedding to compare with them."
        )
        found.append(Notice(subject="audit", kind="perceptual-embedding", text=text))
    return found


def check_embeddings(config: AuditConfig) -> None:
    """Raise ConfigError for a word under `[metrics]` that names no embedding; nothing is loaded for that."""
    for key in ("embedding", "perceptual"):
        try:
            check_word(getattr(config.metrics, key), f"metrics.{key}")
        except ValueError as error:
            raise ConfigError(f"Key 'metrics.{key}' is not valid: {error}.") from None
