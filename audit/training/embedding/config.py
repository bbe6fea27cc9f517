"""What the TOML file of `spruce-audit train embedding` may say, with defaults and units."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from audit.config import Eps, Section, Training, Weights, load_training
from audit.embeddings.domain import reserved_name
from audit.embeddings.layers import GROUPS
from audit.training.classifier.config import AugmentationConfig, OptimiserConfig


class ViewsConfig(AugmentationConfig):
    """How the two views of an image differ; no mirroring by default, because left and right matter in radiographs."""

    crop: float = Field(0.7, gt=0, le=1, description="smallest share of the area that a resized crop keeps; 1: no crop")
    rotation: float = Field(8.0, ge=0, le=180, description="largest angle in degrees, either way")
    translation: float = Field(0.04, ge=0, lt=1, description="largest shift as a share of the side")
    brightness: float = Field(0.25, ge=0, le=1, description="largest change of brightness; 0.2: from 0.8 to 1.2 times")
    contrast: float = Field(0.25, ge=0, le=1, description="largest change of contrast; 0.2: from 0.8 to 1.2 times")
    noise: float = Field(0.03, ge=0, le=1, description="normal noise of a deviation drawn from [0, noise]")
    blur: float = Field(
        1.0, ge=0, le=1.5, description="half of the views are blurred by a deviation up to this (pixels)"
    )


class EmbeddingSelectionConfig(Section):
    """The weights kept are those of the lowest contrastive loss on images held back from the training split."""

    every: int = Field(100, ge=1, description="steps between two validations")
    n: int = Field(512, ge=2, description="images held back; at most a fifth of the split")
    patience: int | None = Field(None, ge=1, description="stop after so many validations without a gain; absent: never")


class EmbeddingEvaluationConfig(Section):
    """What is measured for the card; none of it chooses anything."""

    fitted: int = Field(2000, ge=20, description="labelled images of the training split on which the probes are fitted")
    n: int = Field(1000, ge=10, description="labelled images of the audit split on which they are measured")
    twins: int = Field(300, ge=16, description="phantom: pairs of an image with a finding and its healthy twin")
    eps: Eps = Field("8/255", description="phantom: radius of the adversarial examples towards healthy")
    steps: int = Field(20, ge=1, description="phantom: PGD steps of those")


class EmbeddingTrainConfig(Training):
    """One domain embedding to train, by contrast and without labels."""

    name: str = Field(
        "domain",
        min_length=1,
        pattern=r"^[A-Za-z0-9._-]+$",
        description="name of the file, and of the embedding in results",
    )
    seed: int = Field(0, ge=0, description="everything that is drawn at random follows from it")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' …")
    split: str | None = Field(None, description="split to learn from; default: data.calibration_split, else train")
    generator: Weights | None = Field(None, description="its discriminator is compared with the embedding on the card")
    widths: tuple[Annotated[int, Field(ge=GROUPS, le=1024, multiple_of=GROUPS)], ...] | None = Field(
        None, min_length=1, max_length=8, description="channels of the stages, each half the side; default: by the size"
    )
    features: int = Field(128, ge=8, le=2048, description="length of the embedding")
    projection: int = Field(64, ge=2, description="length of what the head projects to; only while training")
    temperature: float = Field(0.2, gt=0, description="of the contrastive loss")
    optimiser: OptimiserConfig
    augmentation: ViewsConfig = ViewsConfig()
    selection: EmbeddingSelectionConfig = EmbeddingSelectionConfig()
    evaluation: EmbeddingEvaluationConfig = EmbeddingEvaluationConfig()

    @field_validator("name")
    @classmethod
    def _own_name(cls, value: str) -> str:
        other = reserved_name(value)
        if other is not None:
            raise ValueError(f"'{value}' would be taken for '{other}' in results; choose another name")
        return value


def load_embedding_train_config(path: str | Path) -> EmbeddingTrainConfig:
    """Read a training's TOML file; relative paths are made absolute against its folder. Raises ConfigError."""
    return load_training(EmbeddingTrainConfig, path, "generator")
