"""What the TOML file of `spruce-audit train classifier` and `train factors` may say, with defaults and units."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from audit.config import Eps, EpsL2, Precision, Section, Training, eps_value, load_training, read_config
from audit.training.classifier.preset import with_preset

NO_FILE = ("none", "timm")
"""What `initial` may say beside a file or shipped weights."""


class MartConfig(Section):
    """MART (Wang et al. 2020)."""

    weight: float = Field(5.0, gt=0, description="lambda: weight of the divergence")


class AwpConfig(Section):
    """The weight perturbation of AWP-TRADES (Wu et al. 2020)."""

    gamma: float = Field(0.005, gt=0, lt=1, description="length of the perturbation relative to the weights, per layer")
    warmup: float = Field(0.1, ge=0, le=1, description="share of the training before the perturbation starts")


class VatConfig(Section):
    """Virtual adversarial training (Miyato et al. 2018); its radius is its own because it is always Euclidean."""

    eps: EpsL2 = Field("1.0", description="L2 radius, Euclidean over all pixels of an image in [0, 1]")
    xi: float = Field(0.1, gt=0, description="length of the probe of the power iteration, in the units of eps")
    iterations: int = Field(1, ge=1, description="power iterations")
    weight: float = Field(1.0, gt=0, description="alpha: weight of the smoothness term")


class AldConfig(Section):
    """Adversarial local distribution: particles by Stein variational gradient descent."""

    base: Literal["pgd", "trades"] = Field("trades", description="loss of the particles: at the label, or divergence")
    particles: int = Field(4, ge=1, description="adversarial examples of an image")
    bandwidth: Literal["median", "literal"] | Annotated[float, Field(gt=0)] = Field(
        "median",
        description="kernel's sigma: median heuristic, the printed 10^(1 - particles), or a number (Euclidean)",
    )
    weight: float | None = Field(None, gt=0, description="lambda; default 1 for base pgd, 6 for base trades")
    clean_weight: float = Field(
        1.0, ge=0, description="weight of the clean cross-entropy; 0 with pgd: adversarial only"
    )


OWN_TABLES = {"mart": "mart", "awp-trades": "awp", "vat": "vat", "ald": "ald"}
"""The table that belongs to a kind of objective."""


class ObjectiveConfig(Section):
    """What is minimised: cross-entropy, or an objective on attacked images; a kind's own table holds what it adds."""

    kind: Literal["plain", "pgd-at", "trades", "mart", "awp-trades", "vat", "ald"] = Field(
        "plain", description="what is minimised"
    )
    eps: EpsL2 = Field("8/255", description="radius of the attack in `norm`, in pixel units; vat has one of its own")
    norm: Literal["Linf", "L2"] = Field("Linf", description="norm of eps")
    beta: float = Field(6.0, gt=0, description="TRADES and AWP-TRADES: weight of the divergence")
    steps: int = Field(10, ge=1, description="steps of the inner maximisation")
    step_size: float | None = Field(None, gt=0, description="in pixel units; default 2 * eps / steps")
    ramp: float = Field(0.0, ge=0, lt=1, description="share of the training over which the radius grows to eps")
    mart: MartConfig | None = Field(None, description="only with kind mart, then the defaults if absent")
    awp: AwpConfig | None = Field(None, description="only with kind awp-trades")
    vat: VatConfig | None = Field(None, description="only with kind vat")
    ald: AldConfig | None = Field(None, description="only with kind ald")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of the label that is spread over all classes")
    class_weights: tuple[float, ...] | Literal["balanced"] | None = Field(
        None, description="weight of each class in label order, or 'balanced': inverse to its frequency in training"
    )

    @model_validator(mode="before")
    @classmethod
    def _own_table(cls, value: Any) -> Any:
        """Put the table of the kind in place with its defaults, so that a card states them."""
        table = OWN_TABLES.get(str(value.get("kind"))) if isinstance(value, dict) else None
        return value if table is None or value.get(table) is not None else {**value, table: {}}

    @model_validator(mode="after")
    def _consistent(self) -> "ObjectiveConfig":
        if self.norm == "Linf" and eps_value(self.eps) > 1:
            raise ValueError(f"eps {self.eps} is not in (0, 1], as an L-inf radius in pixel units must be")
        for kind, table in OWN_TABLES.items():
            if getattr(self, table) is not None and self.kind != kind:
                raise ValueError(f"the table '{table}' belongs to kind '{kind}' but kind is '{self.kind}': remove it")
        return self


class OptimiserConfig(Section):
    """AdamW with linear warm-up and a cosine to zero; the length is `steps`, or `epochs` over the training images."""

    lr: float = Field(1e-3, gt=0, description="largest learning rate")
    weight_decay: float = Field(0.05, ge=0, description="of AdamW")
    batch_size: int = Field(64, ge=1, description="of all processes together")
    epochs: float | None = Field(None, gt=0, description="passes over the training images (phantom: give steps)")
    steps: int | None = Field(None, ge=1, description="length of the training, in place of epochs")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    gradient_clip: float | None = Field(1.0, gt=0, description="largest norm of the gradient")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of an exponential moving average of the weights")
    precision: Precision = Field(
        "float32", description="of the forward pass; float16 needs CUDA, validation is float32"
    )

    @model_validator(mode="after")
    def _one_length(self) -> "OptimiserConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self


def _probability(value: Any) -> Any:
    """Read `true` as one half and `false` as never."""
    return 0.5 * value if isinstance(value, bool) else value


class AugmentationConfig(Section):
    """Random changes that keep the class; off by default because left and right matter in radiographs."""

    shift: int = Field(0, ge=0, description="largest shift in whole pixels, edges replicated")
    flip: Annotated[float, BeforeValidator(_probability)] = Field(
        0.0, ge=0, le=1, description="probability of mirroring left and right; true: 1/2"
    )
    crop: float = Field(1.0, gt=0, le=1, description="smallest share of the area that a resized crop keeps; 1: no crop")
    rotation: float = Field(0.0, ge=0, le=180, description="largest angle in degrees, either way")
    translation: float = Field(0.0, ge=0, lt=1, description="largest shift as a share of the side")
    scaling: float = Field(0.0, ge=0, lt=1, description="largest change of size; 0.05: from 0.95 to 1.05 times")
    shear: float = Field(0.0, ge=0, lt=90, description="largest x-shear in degrees, either way")
    brightness: float = Field(0.0, ge=0, le=1, description="largest change of brightness; 0.2: from 0.8 to 1.2 times")
    contrast: float = Field(0.0, ge=0, le=1, description="largest change of contrast; 0.2: from 0.8 to 1.2 times")


class SelectionConfig(Section):
    """The checkpoint kept is the best on the validation split, and the training may stop when none better comes."""

    by: Literal["auto", "clean", "robust"] = Field(
        "auto", description="accuracy without or under PGD; auto: robust for every adversarial objective, else clean"
    )
    every: int = Field(200, ge=1, description="steps between two validations")
    every_epochs: float | None = Field(None, gt=0, description="passes between two validations, in place of every")
    patience: int | None = Field(None, ge=1, description="stop after so many validations without a gain; absent: never")
    n: int = Field(512, ge=1, description="validation images")
    attack_steps: int = Field(10, ge=1, description="PGD steps when selecting by robust accuracy")
    eps: EpsL2 | None = Field(None, description="radius when selecting by robust accuracy; default: the objective's")


class EvaluationConfig(Section):
    """What is measured for the card once training has finished."""

    n: int = Field(2000, ge=1, description="images for clean accuracy (phantom; else the whole test split)")
    attacked: int = Field(500, ge=1, description="images that are attacked")
    eps: tuple[Eps, ...] = Field(("2/255", "8/255"), description="L-inf radii")
    steps: int = Field(20, ge=1, description="steps of PGD")
    marker_correlations: tuple[float, ...] = Field((0.0,), description="phantom: one evaluation for each")


class ClassifierTrainConfig(Training):
    """One classifier to train."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$", description="name of the files that are written")
    preset: Literal["spruce-plain", "spruce-trades"] | None = Field(
        None, description="fills the keys left out; `key = false` takes one back to its default"
    )
    seed: int = Field(0, ge=0, description="everything that is drawn at random follows from it")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' …")
    train_split: str = Field("train", description="split to learn from")
    validation_split: str = Field("val", description="split on which the checkpoint is chosen")
    architecture: str = Field("small-convnext", description="'small-convnext' or a timm model name")
    architecture_args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for timm")
    initial: str = Field("none", description="weights to start from: 'none' (random), 'timm' (pretrained), or a path")
    mean: tuple[float, ...] | None = Field(None, description="default: measured on training images")
    std: tuple[float, ...] | None = Field(None, description="standard deviation, as mean")
    objective: ObjectiveConfig = ObjectiveConfig()
    optimiser: OptimiserConfig
    augmentation: AugmentationConfig = AugmentationConfig()
    selection: SelectionConfig = SelectionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        return with_preset(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _selection_radius(self) -> "ClassifierTrainConfig":
        if self.selects_by == "robust" and self.objective.norm == "Linf" and eps_value(self.selection_eps) > 1:
            raise ValueError(f"selection.eps {self.selection_eps} is not in (0, 1], as an L-inf radius must be")
        return self

    @property
    def selects_by(self) -> Literal["clean", "robust"]:
        """Which accuracy on the validation images chooses the checkpoint."""
        if self.selection.by != "auto":
            return self.selection.by
        return "clean" if self.objective.kind in ("plain", "vat") else "robust"

    @property
    def selection_eps(self) -> str:
        """Radius, in the objective's norm, of the attack under which a checkpoint is chosen by robust accuracy."""
        return self.selection.eps or self.objective.eps

    @property
    def starts_from_file(self) -> bool:
        """Whether `initial` is a path."""
        return self.initial not in NO_FILE


class FactorsTrainConfig(Section):
    """The network that regresses the phantom's causal factors."""

    name: str = Field("phantom-factors", pattern=r"^[A-Za-z0-9._-]+$", description="name of the files that are written")
    seed: int = Field(0, ge=0, description="everything that is drawn at random follows from it")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' …")
    optimiser: OptimiserConfig
    noise: float = Field(0.05, ge=0, description="images get normal noise of a deviation drawn from [0, noise]")
    blur: float = Field(1.0, ge=0, description="half of the images are blurred by a deviation up to this, in pixels")
    finding_weight: float = Field(3.0, gt=0, description="weight of the finding's and marker's factors; others 1")
    selection: SelectionConfig = SelectionConfig()
    n_evaluation: int = Field(2000, ge=10, description="fresh images that the card's scores are measured on")


def load_classifier_train_config(path: str | Path) -> ClassifierTrainConfig:
    """Read a training's TOML file; its paths are made absolute against its folder. Raises ConfigError."""
    return load_training(ClassifierTrainConfig, path, "initial", names=NO_FILE)


def load_factors_train_config(path: str | Path) -> FactorsTrainConfig:
    """Read the TOML file of the factors network's training. Raises ConfigError."""
    return read_config(FactorsTrainConfig, path)
