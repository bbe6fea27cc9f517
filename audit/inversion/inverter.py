"""What a set of images is inverted with."""

from dataclasses import dataclass

from audit.config import InversionConfig
from audit.embeddings.embedding import MapNetwork
from audit.generator.protocol import Generator
from audit.inversion.encoder import Encoder


@dataclass(frozen=True)
class Inverter:
    """Networks, settings and seed of an inversion: an image's inversion depends on these and the image alone.

    Without `perceptual` the distance between images is their squared error; without `encoder` an inversion starts from
    a random code.
    """

    generator: Generator
    config: InversionConfig
    seed: int
    perceptual: MapNetwork | None = None
    encoder: Encoder | None = None
