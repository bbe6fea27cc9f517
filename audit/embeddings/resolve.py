"""The one table of embeddings: what a word of a configuration stands for, and which keys may name it.

A new embedding is one entry of `EMBEDDINGS`. Another package adds one by an entry point of the group
`spruce_audit.embeddings`. Where a word may stand, the `.safetensors` file of a domain embedding may as well.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import nn

from audit.config import is_embedding_file
from audit.embeddings.canonical import available, load_clip, load_inception, load_lpips
from audit.embeddings.domain import load_domain
from audit.embeddings.embedding import Embedder, FeatureNetwork, MapNetwork, Named
from audit.embeddings.phantom_factors import load_phantom_factors
from audit.errors import ConfigError, GeneratorError
from audit.generator.features import DiscriminatorFeatures
from audit.generator.files.load import why_no_discriminator
from audit.generator.protocol import LoadedGenerator
from audit.runtime.registry import Registry
from audit.storage import shipped

Needs = Literal["vectors", "maps", "vectors and maps"]
_OFFERS = {"vectors": Embedder, "maps": MapNetwork, "vectors and maps": FeatureNetwork}


@dataclass(frozen=True)
class Request:
    """Where an embedding is wanted: the key that names it (as errors call it), the device, the images, the generator.

    `is_phantom` says whether the images are the built-in phantom's; `loaded` is the generator, if the work has one.
    """

    key: str
    device: torch.device
    is_phantom: bool = False
    loaded: LoadedGenerator | None = None


@dataclass(frozen=True)
class Spec:
    """An entry of the table.

    `load` reads the network (it need not be on the device yet), `keys` are the keys that may name it. The word "auto"
    stands for the first entry for which `auto` is true.
    """

    load: Callable[[Request], Named]
    keys: tuple[str, ...]
    auto: Callable[[Request], bool] = lambda _: False


def _discriminator(request: Request) -> DiscriminatorFeatures:
    loaded = request.loaded
    if loaded is None or loaded.discriminator is None:
        why = "No generator is named" if loaded is None else why_no_discriminator(loaded)
        raise GeneratorError(
            f"{why}, and '{request.key}' rests on its features: set {request.key} to the .safetensors file of a domain "
            "embedding, which `spruce-audit train embedding` learns from images alone, or name a generator file with a "
            "discriminator."
        )
    return DiscriminatorFeatures(loaded.discriminator)


EMBEDDINGS: Registry[Spec] = Registry(
    "embeddings",
    "embedding",
    {
        "phantom-factors": Spec(
            lambda _: load_phantom_factors(shipped.path("embeddings", "phantom-factors")),
            ("metrics.embedding", "metrics.perceptual", "fid_embedding", "similarity"),
            auto=lambda request: request.is_phantom,
        ),
        "discriminator": Spec(
            _discriminator,
            ("metrics.embedding", "metrics.perceptual", "similarity", "features"),
            auto=lambda _: True,
        ),
        "inception": Spec(
            lambda _: load_inception(),
            ("metrics.canonical", "fid_embedding"),
            auto=lambda _: not isinstance(available()["inception-v3-fid"], str),
        ),
        "clip": Spec(lambda _: load_clip(), ("metrics.canonical",)),
        "lpips-alex": Spec(lambda _: load_lpips("alex"), ("similarity", "second_discriminator")),
        "lpips-vgg": Spec(
            lambda _: load_lpips("vgg"),
            ("metrics.canonical", "metrics.perceptual", "similarity", "second_discriminator"),
        ),
    },
)


def check_word(value: str, key: str, own: tuple[str, ...] = ("auto",)) -> str:
    """Return `value` if `key` may have it: a word of its `own`, an embedding of the table, or a file.

    Raises ValueError naming the nearest word, and ConfigError for an embedding of a package that cannot be imported.
    """
    builtin = [name for name, spec in EMBEDDINGS.builtin.items() if key in spec.keys]
    others = [name for name in EMBEDDINGS.names() if name not in EMBEDDINGS.builtin]
    if value in own or value in builtin or is_embedding_file(value):
        return value
    if value in others and key in EMBEDDINGS.get(value, key).keys:
        return value
    near = difflib.get_close_matches(value, [*own, *builtin, *others], n=1, cutoff=0.0)[0]
    raise ValueError(
        f"'{value}' is no embedding: did you mean '{near}'? Or give the .safetensors file of a domain embedding"
    )


def choose(value: str, request: Request) -> str | None:
    """Return what `value` stands for: itself, or for "auto" the first entry that suits; None where none does."""
    if value != "auto":
        return value
    suiting = (name for name, spec in EMBEDDINGS.builtin.items() if request.key in spec.keys and spec.auto(request))
    return next(suiting, None)


@overload
def resolve(name: str, request: Request, needs: Literal["vectors"]) -> Embedder: ...
@overload
def resolve(name: str, request: Request, needs: Literal["maps"]) -> MapNetwork: ...
@overload
def resolve(name: str, request: Request, needs: Literal["vectors and maps"]) -> FeatureNetwork: ...
def resolve(name: str, request: Request, needs: Needs) -> Named:
    """Load the embedding called `name`, a word of the table, "auto" or a file, onto the device of `request`.

    `needs` says what the caller asks of it: vectors of images, feature maps for a perceptual distance, or both. Raises
    ConfigError where it does not offer that or its package cannot be imported, GeneratorError where it is the
    discriminator and there is none, MetricError or WeightsError where its weights are not there.
    """
    name = choose(name, request) or name
    found = load_domain(name) if is_embedding_file(name) else EMBEDDINGS.get(name, request.key).load(request)
    if not isinstance(found, _OFFERS[needs]):
        raise ConfigError(f"Key '{request.key}' names '{name}', which does not offer {needs}: name another embedding.")
    return found.to(request.device) if isinstance(found, nn.Module) else found
