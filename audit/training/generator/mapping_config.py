"""What `spruce-audit train mapping CONFIG.toml` may say."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from audit.config import Training, Weights, embedding_path, load_training
from audit.embeddings.resolve import check_word
from audit.training.generator.config import fid_word, portable


def _feature(value: str) -> str:
    return check_word(value, "features", ("pixels",))


class FitMappingConfig(Training):
    """A fit of a generator's mapping network to the moments of real images."""

    split: str | None = Field(None, description="split to learn from; default: data.calibration_split, else train")
    generator: Weights = Field(description="trained generator whose mapping network is fitted")
    seed: int = Field(0, ge=0, description="everything that is drawn at random follows from it")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' …")
    features: tuple[Annotated[str, AfterValidator(_feature)], ...] = Field(
        ("pixels",),
        min_length=1,
        description="whose moments are brought together: pixels (means of an 8x8 grid), discriminator, or the "
        ".safetensors of domain embeddings (train embedding); not the one that measures the result",
    )
    least_share: float = Field(
        0.001, ge=0, lt=1, description="directions with less of the largest direction's variance are left alone"
    )
    kimg: float = Field(128, gt=0, description="thousands of images drawn")
    batch_size: int = Field(64, ge=2, description="images drawn per step")
    lr: float = Field(0.01, gt=0, description="falls to zero along a cosine; the network's own weights move 0.01 of it")
    anchor: float = Field(
        0.1, ge=0, description="weight of how far w moves for a z, in its deviations: of all that close the gap, the "
        "nearest network is taken; 0: any"
    )  # fmt: skip
    window_kimg: float = Field(20, ge=0.1, description="half-life of the running moments")
    snapshot_kimg: float = Field(20, gt=0, description="kimg between two snapshots")
    fid_images: int = Field(2000, ge=50, description="images that FID is measured on")
    fid_embedding: Annotated[str, AfterValidator(fid_word)] = Field(
        "auto", description="what measures before and after on the card; as in `train generator`"
    )

    @model_validator(mode="after")
    def _measured_by_another(self) -> "FitMappingConfig":
        if self.fid_embedding in self.features:
            raise ValueError("fid_embedding is among the features that the generator is fitted to: name another")
        return self


def load_fit_mapping_config(path: str | Path) -> FitMappingConfig:
    """Read a fit's TOML file; relative paths are made absolute against its folder. Raises ConfigError."""
    config = load_training(FitMappingConfig, path, "generator", embeddings=("fid_embedding",))
    base = Path(path).resolve().parent
    return config.model_copy(update={"features": tuple(embedding_path(name, base) for name in config.features)})


def portable_fit(config: FitMappingConfig) -> dict[str, Any]:
    """Return a fit's settings for its card, files by their names."""
    content = portable(config, "generator", "fid_embedding")
    return content | {"features": [Path(name).name for name in config.features]}
