"""`train ...`: train what an audit needs."""

from pathlib import Path

import typer

from audit.cli.arguments import ConfigFile, Out
from audit.runtime.terminal import say

app = typer.Typer(no_args_is_help=True, help="Train what an audit needs: classifiers, generator, embedding.")


def _claim(out: Path, name: str) -> None:
    from audit.storage.output import claim

    checkpoint = f"{name}.checkpoint.pt"
    claim(out, (f"{name}.safetensors", f"{name}.json", checkpoint), checkpoint)


def _claim_generator(out: Path, kind: str, start: str | None) -> None:
    from audit.storage.output import claim

    names = [f"{kind}.safetensors", f"{kind}.json", "history.jsonl", "checkpoint.pt"]
    if kind == "generator":
        names += ["samples.png", "samples"]
    claim(out, names, "checkpoint.pt", (start,))


@app.command("classifier")
def train_classifier_command(config: ConfigFile, out: Out = Path("runs/classifier")) -> None:
    """Train a classifier: plain, pgd-at, trades, mart, awp-trades, vat or ald; presets spruce-plain, spruce-trades.

    Writes safetensors and a card. A killed run goes on where it was. For several GPUs or processes:
    torchrun --nproc-per-node 2 -m audit.cli train classifier CONFIG.toml
    """
    from audit.runtime.distributed import is_first
    from audit.training.classifier.config import load_classifier_train_config
    from audit.training.classifier.train import train_classifier

    settings = load_classifier_train_config(config)
    _claim(out, settings.name)
    weights = train_classifier(settings, out)
    if is_first():
        say(weights)


@app.command("factors")
def train_factors_command(config: ConfigFile, out: Out = Path("runs/factors")) -> None:
    """Train the phantom's embedding: a network that regresses its causal factors."""
    from audit.training.classifier.config import load_factors_train_config
    from audit.training.embedding.factors import train_factors

    settings = load_factors_train_config(config)
    _claim(out, settings.name)
    say(train_factors(settings, out))


@app.command("generator")
def train_generator_command(config: ConfigFile, out: Out = Path("runs/generator")) -> None:
    """Train a StyleGAN2-ADA generator; a killed run goes on where it was.

    For several GPUs or processes: torchrun --nproc-per-node 2 -m audit.cli train generator CONFIG.toml
    """
    from audit.runtime.distributed import is_first
    from audit.training.generator.config import load_generator_train_config
    from audit.training.generator.train import run_generator_training

    settings = load_generator_train_config(config)
    _claim_generator(out, "generator", settings.start_from)
    weights = run_generator_training(settings, out)
    if is_first():
        say(weights)


@app.command("mapping")
def train_mapping_command(config: ConfigFile, out: Out = Path("runs/mapping")) -> None:
    """Fit the mapping network of a trained generator to mean and covariance of real images' features."""
    from audit.training.generator.mapping import run_mapping_fit
    from audit.training.generator.mapping_config import load_fit_mapping_config

    settings = load_fit_mapping_config(config)
    _claim_generator(out, "generator", settings.generator)
    say(run_mapping_fit(settings, out))


@app.command("embedding")
def train_embedding_command(config: ConfigFile, out: Out = Path("runs/embedding")) -> None:
    """Train a domain embedding without labels, which metrics.embedding can name, with a card.

    A killed run goes on where it was; torchrun as for classifiers.
    """
    from audit.runtime.distributed import is_first
    from audit.training.embedding.config import load_embedding_train_config
    from audit.training.embedding.train import train_embedding

    settings = load_embedding_train_config(config)
    _claim(out, settings.name)
    weights = train_embedding(settings, out)
    if is_first():
        say(weights)


@app.command("encoder")
def train_encoder_command(config: ConfigFile, out: Out = Path("runs/encoder")) -> None:
    """Train the encoder that brings images into a generator's latent space."""
    from audit.training.encoder.config import load_encoder_train_config, run_encoder_training

    settings = load_encoder_train_config(config)
    _claim_generator(out, "encoder", settings.generator)
    say(run_encoder_training(settings, out))
