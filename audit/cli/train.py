"""`train ...`: train what an audit needs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import typer

from audit.cli.arguments import ConfigFile, Out
from audit.runtime.terminal import say

app = typer.Typer(no_args_is_help=True, help="Train what an audit needs: classifiers, generator, embedding.")
S = TypeVar("S")
RUN_FILES = ("history.jsonl", "checkpoint.pt")
GENERATOR_FILES = ("generator.safetensors", "generator.json", "samples.png", "samples", *RUN_FILES)
ENCODER_FILES = ("encoder.safetensors", "encoder.json", *RUN_FILES)


def _named(name: str) -> tuple[str, ...]:
    return f"{name}.safetensors", f"{name}.json", f"{name}.checkpoint.pt"


def _train(
    train: Callable[[S, Path], Path], settings: S, out: Path, files: Sequence[str], start: str | None = None
) -> None:
    """Claim `files` in `out`, the last of them the checkpoint, where `start` is read only; train; print the weights."""
    from audit.runtime.distributed import is_first
    from audit.storage.own_files import claim

    claim(out, files, files[-1], (start,))
    weights = train(settings, out)
    if is_first():
        say(weights)


@app.command("classifier")
def train_classifier_command(config: ConfigFile, out: Out = Path("runs/classifier")) -> None:
    """Train a classifier: plain, pgd-at, trades, mart, awp-trades, vat or ald; presets spruce-plain, spruce-trades.

    Writes safetensors and a card. A killed run goes on where it was. For several GPUs or processes:
    torchrun --nproc-per-node 2 -m audit.cli train classifier CONFIG.toml
    """
    from audit.training.classifier.config import load_classifier_train_config
    from audit.training.classifier.train import train_classifier

    settings = load_classifier_train_config(config)
    _train(train_classifier, settings, out, _named(settings.name))


@app.command("factors")
def train_factors_command(config: ConfigFile, out: Out = Path("runs/factors")) -> None:
    """Train the phantom's embedding: a network that regresses its causal factors."""
    from audit.training.classifier.config import load_factors_train_config
    from audit.training.embedding.factors import train_factors

    settings = load_factors_train_config(config)
    _train(train_factors, settings, out, _named(settings.name))


@app.command("generator")
def train_generator_command(config: ConfigFile, out: Out = Path("runs/generator")) -> None:
    """Train a StyleGAN2-ADA generator; a killed run goes on where it was.

    For several GPUs or processes: torchrun --nproc-per-node 2 -m audit.cli train generator CONFIG.toml
    """
    from audit.training.generator.config import load_generator_train_config
    from audit.training.generator.train import run_generator_training

    settings = load_generator_train_config(config)
    _train(run_generator_training, settings, out, GENERATOR_FILES, settings.start_from)


@app.command("mapping")
def train_mapping_command(config: ConfigFile, out: Out = Path("runs/mapping")) -> None:
    """Fit the mapping network of a trained generator to mean and covariance of real images' features."""
    from audit.training.generator.mapping import run_mapping_fit
    from audit.training.generator.mapping_config import load_fit_mapping_config

    settings = load_fit_mapping_config(config)
    _train(run_mapping_fit, settings, out, GENERATOR_FILES, settings.generator)


@app.command("embedding")
def train_embedding_command(config: ConfigFile, out: Out = Path("runs/embedding")) -> None:
    """Train a domain embedding without labels, which metrics.embedding can name, with a card.

    A killed run goes on where it was; torchrun as for classifiers.
    """
    from audit.training.embedding.config import load_embedding_train_config
    from audit.training.embedding.train import train_embedding

    settings = load_embedding_train_config(config)
    _train(train_embedding, settings, out, _named(settings.name))


@app.command("encoder")
def train_encoder_command(config: ConfigFile, out: Out = Path("runs/encoder")) -> None:
    """Train the encoder that brings images into a generator's latent space."""
    from audit.training.encoder.config import load_encoder_train_config, run_encoder_training

    settings = load_encoder_train_config(config)
    _train(run_encoder_training, settings, out, ENCODER_FILES, settings.generator)
