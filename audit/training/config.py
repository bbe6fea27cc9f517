"""What the TOML file of `spruce-audit train classifier` and `train factors` may say, with defaults and units."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from audit.config import Eps, Section, Training, load_training, parse_config, read_toml


class ObjectiveConfig(Section):
    """What is minimised: cross-entropy, or TRADES (Zhang et al. 2019)."""

    kind: Literal["plain", "trades"] = "plain"
    eps: Eps = Field("8/255", description="TRADES: L-inf radius in pixel units")
    beta: float = Field(6.0, gt=0, description="TRADES: weight of the divergence")
    steps: int = Field(10, ge=1, description="TRADES: steps of the inner maximisation")
    step_size: float | None = Field(None, gt=0, description="TRADES: in pixel units; default 2 * eps / steps")
    ramp: float = Field(0.0, ge=0, lt=1, description="TRADES: share of the training over which the radius grows to eps")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: tuple[float, ...] | Literal["balanced"] | None = Field(
        None, description="weight of each class in label order, or 'balanced': inverse to its frequency in training"
    )


class OptimiserConfig(Section):
    """AdamW with linear warm-up and a cosine to zero; the length is `steps`, or `epochs` over the training images."""

    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    batch_size: int = Field(64, ge=1)
    epochs: float | None = Field(None, gt=0, description="passes over the training images (phantom: give steps)")
    steps: int | None = Field(None, ge=1)
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    gradient_clip: float | None = Field(1.0, gt=0)
    ema: float | None = Field(None, gt=0, lt=1, description="decay of an exponential moving average of the weights")

    @model_validator(mode="after")
    def _one_length(self) -> "OptimiserConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self


class AugmentationConfig(Section):
    """Random changes that keep the class; off by default because left and right matter in radiographs."""

    shift: int = Field(0, ge=0, description="largest shift in pixels, edges replicated")
    flip: bool = Field(False, description="mirror left and right with probability 1/2")


class SelectionConfig(Section):
    """The checkpoint kept is the best on the validation split: by robust accuracy under TRADES, else by clean."""

    every: int = Field(200, ge=1, description="steps between two validations")
    n: int = Field(512, ge=1, description="validation images")
    attack_steps: int = Field(10, ge=1, description="PGD steps when selecting by robust accuracy")


class EvaluationConfig(Section):
    """What is measured for the card once training has finished."""

    n: int = Field(2000, ge=1, description="images for clean accuracy (phantom; else the whole test split)")
    attacked: int = Field(500, ge=1)
    eps: tuple[Eps, ...] = ("2/255", "8/255")
    steps: int = Field(20, ge=1)
    marker_correlations: tuple[float, ...] = Field((0.0,), description="phantom: one evaluation for each")


class ClassifierTrainConfig(Training):
    """One classifier to train."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = Field(0, ge=0)
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' …")
    train_split: str = "train"
    validation_split: str = "val"
    architecture: str = Field("small-convnext", description="'small-convnext' or a timm model name")
    architecture_args: dict[str, Any] = Field(default_factory=dict)
    mean: tuple[float, ...] | None = Field(None, description="default: measured on training images")
    std: tuple[float, ...] | None = None
    objective: ObjectiveConfig = ObjectiveConfig()
    optimiser: OptimiserConfig
    augmentation: AugmentationConfig = AugmentationConfig()
    selection: SelectionConfig = SelectionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


class FactorsTrainConfig(Section):
    """The network that regresses the phantom's causal factors."""

    name: str = Field("phantom-factors", pattern=r"^[A-Za-z0-9._-]+$")
    seed: int = Field(0, ge=0)
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' …")
    optimiser: OptimiserConfig
    noise: float = Field(0.05, ge=0, description="images get normal noise of a deviation drawn from [0, noise]")
    blur: float = Field(1.0, ge=0, description="half of the images are blurred by a deviation up to this, in pixels")
    finding_weight: float = Field(3.0, gt=0, description="weight of the finding's and marker's factors; others 1")
    selection: SelectionConfig = SelectionConfig()
    n_evaluation: int = Field(2000, ge=10)


def load_classifier_train_config(path: str | Path) -> ClassifierTrainConfig:
    """Read a training's TOML file; `data.path` is made absolute against its folder. Raises ConfigError."""
    return load_training(ClassifierTrainConfig, path)


def load_factors_train_config(path: str | Path) -> FactorsTrainConfig:
    """Read the TOML file of the factors network's training. Raises ConfigError."""
    return parse_config(FactorsTrainConfig, read_toml(path), f"'{path}'")
