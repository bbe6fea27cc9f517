"""Training of an encoder from a configuration file: loads generator, embedding and images, and starts the training."""

from pathlib import Path

import torch

from audit.config import GeneratorConfig, load_training
from audit.data.describe import note_on_training_data
from audit.data.load import load_data, training_split
from audit.embeddings.embedding import FeatureNetwork
from audit.embeddings.lpips import SMALLEST, Lpips
from audit.embeddings.resolve import Request, choose, resolve
from audit.generator.protocol import LoadedGenerator, check_fits
from audit.generator.readers import read_generator
from audit.runtime.environment import choose_device
from audit.training.encoder.train import EncoderTrainConfig, train_encoder


def load_encoder_train_config(path: str | Path) -> EncoderTrainConfig:
    """Read a training's TOML file; relative paths are made absolute against its folder. Raises ConfigError."""
    return load_training(EncoderTrainConfig, path, "generator", embeddings=("similarity",))


def _similarity(
    config: EncoderTrainConfig, loaded: LoadedGenerator, device: torch.device
) -> FeatureNetwork | Lpips | None:
    """The network of the perceptual terms. Raises GeneratorError or MetricError where it is not there."""
    request = Request("similarity", device, config.data.is_phantom, loaded)
    name = choose(config.similarity, request)
    if name in (None, "none"):
        return None
    if name == "lpips":
        name = "lpips-alex" if loaded.generator.resolution >= SMALLEST["alex"] else "lpips-vgg"
    if name in ("lpips-alex", "lpips-vgg"):
        lpips = resolve(name, request, "maps")
        assert isinstance(lpips, Lpips)
        return lpips
    return resolve(name, request, "vectors and maps")


def run_encoder_training(config: EncoderTrainConfig, out: Path) -> Path:
    """Load generator and data that `config` names, train, and return the path of the encoder."""
    device = choose_device(config.device)
    loaded = read_generator(GeneratorConfig(path=config.generator, format=config.generator_format), device)
    data = load_data(config.data, config.seed)
    check_fits(loaded.generator, data.image_shape)
    perceptual = _similarity(config, loaded, device)
    split = training_split(config.data, data, config.split)
    note_on_training_data(data.split(split))
    return train_encoder(config, loaded.generator, data.split(split), out, perceptual, device)
