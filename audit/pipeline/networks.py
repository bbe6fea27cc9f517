"""The networks that an audit's counterfactuals stand on: what draws, what inverts and what measures."""

from dataclasses import dataclass
from functools import cached_property

import torch

from audit.classifiers.classifier import weights_hash
from audit.config import EMBEDDINGS, AuditConfig
from audit.data.audit_set import AuditSet
from audit.embeddings.canonical import LPIPS_SMALLEST, Lpips, available, load_clip, load_inception, load_lpips
from audit.embeddings.domain import load_domain
from audit.embeddings.embedding import Embedder, FeatureNetwork
from audit.embeddings.phantom_factors import load_phantom_factors
from audit.errors import GeneratorError, MetricError
from audit.generator.features import DiscriminatorFeatures
from audit.generator.files.load import LoadedGenerator, check_fits, load_generator, why_no_discriminator
from audit.inversion.encoder import Encoder, encoder_beside, load_encoder
from audit.results import NotComputed, Notice
from audit.storage import shipped


@dataclass(frozen=True)
class Networks:
    """The networks that draw and measure: generator, encoder, embedding, canonical metrics."""

    loaded: LoadedGenerator
    encoder: Encoder | None
    network: FeatureNetwork
    canonical: list[Embedder]
    lpips: Lpips | None
    missing: list[NotComputed]

    @property
    def notices(self) -> list[Notice]:
        """What the generator's file left open or could not be used for, to be known before a number is believed."""
        return [
            Notice(subject="generator", kind="generator-file", text=f"{note[:1].upper()}{note[1:]}.")
            for note in self.loaded.notes
        ]

    @cached_property
    def encoder_sha256(self) -> str | None:
        """Hash of the encoder's weights; None without an encoder."""
        return None if self.encoder is None else weights_hash(self.encoder.state_dict())


def load_networks(config: AuditConfig, data: AuditSet, device: torch.device) -> Networks:
    """Load what `config` names for images like those of `data`. Raises GeneratorError or MetricError."""
    assert config.generator is not None
    loaded = load_generator(config.generator.path, device)
    check_fits(loaded.generator, data.image_shape)
    encoder = None
    encoder_path = config.inversion.encoder or encoder_beside(config.generator.path)
    if encoder_path is not None:
        encoder = load_encoder(encoder_path, device)
        encoder.check_generator(loaded.generator)
    missing: list[NotComputed] = []
    canonical: list[Embedder] = []
    lpips: Lpips | None = None
    if config.metrics.canonical != "off":
        there = available()
        wanted = {
            "inception-v3-fid": ("FID in Inception-v3", "counterfactuals.fid"),
            "lpips-v0.1-vgg": ("LPIPS v0.1 (VGG-16)", "counterfactuals.lpips"),
            "clip-vit-large-patch14-336": ("CMMD in CLIP ViT-L/14-336", "counterfactuals.cmmd"),
        }
        for key, (what, path) in wanted.items():
            if isinstance(there[key], str):
                missing.append(NotComputed(what=what, why=str(there[key]), paths=[path]))
        if config.metrics.canonical == "require" and missing:
            absent = [key for key in wanted if isinstance(there[key], str)]
            raise MetricError(
                f"metrics.canonical is 'require' but the weights of {', '.join(m.what for m in missing)} are not "
                f"there: run `spruce-audit weights pull {' '.join(absent)}`."
            )
        if not isinstance(there["inception-v3-fid"], str):
            canonical.append(load_inception().to(device))
        if not isinstance(there["clip-vit-large-patch14-336"], str):
            canonical.append(load_clip().to(device))
        if not isinstance(there["lpips-v0.1-vgg"], str):
            side = min(data.image_shape[1:])
            if side >= LPIPS_SMALLEST["vgg"]:
                lpips = load_lpips("vgg").to(device)
            else:
                what, path = wanted["lpips-v0.1-vgg"]
                missing.append(NotComputed(what=what, why=f"images of side {side} are too small", paths=[path]))
    network = domain_embedding(config.metrics.embedding, config.data.is_phantom, loaded, device)
    network.embed(torch.zeros(1, *data.image_shape, device=device))  # a wrong size is said before the long stages
    return Networks(loaded, encoder, network, canonical, lpips, missing)


def domain_embedding(wanted: str, phantom: bool, loaded: LoadedGenerator, device: torch.device) -> FeatureNetwork:
    """The network that no audited model had a part in, by `metrics.embedding`; it is named in the results.

    "auto" takes the factor network for the phantom, else the discriminator; anything but a name is the file of a domain
    embedding. Raises GeneratorError if there is no discriminator, MetricError if the file holds no such embedding.
    """
    if wanted not in EMBEDDINGS:
        return load_domain(wanted).to(device)
    if wanted == "phantom-factors" or (wanted == "auto" and phantom):
        return load_phantom_factors(shipped.path("embeddings", "phantom-factors")).to(device)
    if loaded.discriminator is None:
        raise GeneratorError(
            f"{why_no_discriminator(loaded)}, and realism rests on its features where no embedding is named: set "
            "metrics.embedding to the .safetensors file of a domain embedding, which `spruce-audit train embedding` "
            "learns from images alone, or name a generator file with a discriminator."
        )
    return DiscriminatorFeatures(loaded.discriminator)
