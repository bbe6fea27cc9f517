"""What `spruce-audit train generator CONFIG.toml` may say, and the defaults that the papers give.

Source: Karras et al. 2020 (StyleGAN2: appendix B) and Karras et al. 2020 (ADA: appendix C).
"""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from audit.config import Section, Training, Weights, load_training
from audit.embeddings.resolve import check_word
from audit.training.generator.augment import DEFAULT_GROUPS, Group

RUN_ONLY = (
    "kimg", "data", "split", "start_from", "second_discriminator", "fid_embedding", "device", "tensorboard",
    "sample_grids", "cache_mb",
)  # fmt: skip
"""Keys that say how long, where and with what by-products a run is, but do not change what it computes at a step."""

FILES = ("start_from", "second_discriminator", "fid_embedding")
"""Keys whose value is, or may be, a file."""

SECOND_DISCRIMINATORS = ("none", "scales", "scales-spread")
"""Words of `second_discriminator` beside the embeddings that it may name."""


def _second(value: str) -> str:
    return check_word(value, "second_discriminator", SECOND_DISCRIMINATORS)


def fid_word(value: str) -> str:
    """Return `value` if it names an embedding that FID may rest on, "auto" or "none"; raises ValueError."""
    return check_word(value, "fid_embedding", ("auto", "none"))


class GeneratorTrainConfig(Training):
    """A training of the generator; the defaults suit small images and small networks on two cores."""

    replaced: ClassVar = {
        "widen": "channel_max takes its place, and channel_base where more resolutions are to be wider (for the "
        "discriminator alone: discriminator_channel_max and discriminator_channel_base)"
    }

    split: str | None = Field(None, description="split to learn from; default: data.calibration_split, else train")
    seed: int = Field(0, ge=0, description="everything that is drawn at random follows from it")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' …")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the convolutions; bfloat16 is faster where the processor has it"
    )
    conditional: bool = Field(False, description="both networks are told the class; needs labels")
    z_dim: int = Field(64, ge=4, description="length of the random input")
    w_dim: int = Field(64, ge=4, description="length of a layer's latent code")
    channel_base: int | None = Field(
        None, ge=64, description="maps times resolution; default: 1024, or what start_from has, which more widens"
    )
    channel_max: int | None = Field(
        None, ge=8, description="most maps; default: 32, or what start_from has, which more widens"
    )
    discriminator_channel_base: int | None = Field(
        None,
        ge=64,
        description="default: the generator's, or what start_from has if that is more; a wider "
        "discriminator costs nothing after the training",
    )
    discriminator_channel_max: int | None = Field(
        None, ge=8, description="default: the generator's, or what start_from has if that is more"
    )
    mapping_layers: int = Field(2, ge=1, description="layers of the mapping network")
    kimg: float = Field(400, gt=0, description="thousands of real images shown to the discriminator")
    batch_size: int = Field(32, ge=4, description="of all processes together")
    lr: float = Field(2.5e-3, gt=0, description="learning rate")
    discriminator_lr: float | None = Field(None, gt=0, description="default: lr; higher where G outruns D (TTUR)")
    lr_decay_from: float = Field(0, ge=0, description="kimg after which every learning rate falls")
    lr_half_life: float | None = Field(None, gt=0, description="kimg in which it halves; default: it never falls")
    second_discriminator: Annotated[str, AfterValidator(_second)] = Field(
        "none",
        description="beside StyleGAN2's, for small networks that stand still: scales (trained with the rest), "
        "scales-spread (also sees how little a group of images varies), or heads on the frozen maps of lpips-alex, "
        "lpips-vgg (`spruce-audit weights pull`) or of a domain embedding's .safetensors",
    )
    second_lr: float = Field(5e-4, gt=0, description="learning rate of second_discriminator")
    spread_group: int = Field(8, ge=2, description="images among which scales-spread, and only it, takes a deviation")
    r1_gamma: float | None = Field(
        None, ge=0, description="default: 0.0002 * resolution^2 / batch_size, the heuristic of the ADA paper"
    )
    r1_interval: int = Field(16, ge=1, description="steps between two evaluations")
    path_length_weight: float = Field(2.0, ge=0, description="weight of the path-length regularisation")
    path_length_interval: int = Field(8, ge=1, description="steps between two evaluations")
    style_mixing: float = Field(0.9, ge=0, le=1, description="probability that an image takes styles of two z")
    ema_kimg: float = Field(10.0, gt=0, description="half-life of the averaged generator")
    ema_rampup: float | None = Field(
        0.05, gt=0, description="the half-life is at most this share of the images seen; false: never shortened"
    )
    augmentation: Literal["ada", "none"] = Field(
        "ada", description="of the discriminator's images: adaptive (ADA) or none"
    )
    augmentation_groups: tuple[Group, ...] = Field(DEFAULT_GROUPS, description="filter, noise and cutout are off")
    ada_target: float = Field(0.6, gt=0, lt=1, description="of E[sign(D(real))]; above it p rises")
    ada_kimg: float = Field(
        100, gt=0, description="thousands of images in which p can cross [0, 1]; the paper's 500 suits long runs"
    )
    ada_max: float = Field(0.8, gt=0, le=1, description="largest p; near 1 the augmentations leak into the images")
    start_from: Weights | None = Field(None, description="generator to fine-tune")
    freeze_discriminator: int = Field(0, ge=0, description="finest discriminator blocks kept fixed (Freeze-D)")
    snapshot_kimg: float = Field(20, gt=0, description="kimg between two snapshots")
    sample_grids: int = Field(5, ge=0, description="pictures of the latest snapshots that are kept")
    tensorboard: bool = Field(False, description="write scalars and pictures; needs the extra 'tensorboard'")
    cache_mb: float = Field(1024, ge=0, description="images up to this many MiB stay in memory as bytes, else streamed")
    fid_images: int = Field(2000, ge=50, description="images that a snapshot's FID is measured on")
    fid_embedding: Annotated[str, AfterValidator(fid_word)] = Field(
        "auto",
        description="phantom-factors, inception, none, or the .safetensors of a domain embedding (train embedding); "
        "auto: phantom-factors for the phantom, else Inception where its weights are, else none",
    )

    @model_validator(mode="before")
    @classmethod
    def _never(cls, values: Any) -> Any:
        """Read `ema_rampup = false` as none."""
        never = isinstance(values, dict) and values.get("ema_rampup") is False
        return {**values, "ema_rampup": None} if never else values

    @model_validator(mode="after")
    def _falling_needs_a_pace(self) -> "GeneratorTrainConfig":
        if self.lr_decay_from > 0 and self.lr_half_life is None:
            raise ValueError("lr_decay_from says when the learning rates fall: say how fast in lr_half_life")
        return self

    @model_validator(mode="after")
    def _chosen_by_another(self) -> "GeneratorTrainConfig":
        if self.second_discriminator == self.fid_embedding != "none":
            raise ValueError("fid_embedding is the network that second_discriminator learns to please: name another")
        return self

    @model_validator(mode="after")
    def _freezing_needs_weights(self) -> "GeneratorTrainConfig":
        if self.freeze_discriminator > 0 and self.start_from is None:
            raise ValueError("freeze_discriminator keeps blocks of a trained discriminator: name it in start_from")
        return self

    def resolved(self, resolution: int) -> "GeneratorTrainConfig":
        """Return the settings with R1's weight and a new network's widths filled in, so that a card states them.

        Widths that are left to `start_from` stay None: its file holds them.
        """
        filled: dict[str, float] = {}
        if self.r1_gamma is None:
            filled["r1_gamma"] = r1_heuristic(resolution, self.batch_size)
        if self.start_from is None:
            filled |= {"channel_base": self.channel_base or 1024, "channel_max": self.channel_max or 32}
        return self.model_copy(update=filled)


def r1_heuristic(resolution: int, batch_size: int) -> float:
    """Weight of R1 for square images: `0.0002 * pixels / batch_size` (ADA, appendix C)."""
    return 2e-4 * resolution**2 / batch_size


def load_generator_train_config(path: str | Path) -> GeneratorTrainConfig:
    """Read a training's TOML file; relative paths are made absolute against its folder. Raises ConfigError."""
    embeddings = ("second_discriminator", "fid_embedding")
    return load_training(GeneratorTrainConfig, path, "start_from", embeddings=embeddings)


def portable(config: Section, *paths: str) -> dict[str, Any]:
    """Return a training's settings for its card: `data.path` and the keys `paths` by file name, without folders."""
    content = config.model_dump(mode="json")
    content["data"]["path"] = Path(content["data"]["path"]).name
    return content | {key: Path(content[key]).name for key in paths if content[key] is not None}
