"""One validated schema of an audit: what `audit.toml` may say, with defaults, units and clear errors."""

import difflib
import logging
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from audit.errors import ConfigError


class Section(BaseModel):
    """A table of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    replaced: ClassVar[Mapping[str, str]] = {}
    """Keys of earlier versions, and what says the same now."""


def _exact(text: str) -> Fraction:
    """Read `8/255`, `0.5/255`, `4 / 255` or `0.03` exactly; raises ValueError or ZeroDivisionError."""
    written = [part.strip() for part in text.split("/")]
    # Exact numbers of a thousand digits, or of `1e999999999`, are no float and take for ever.
    if len(written) > 2 or not all(re.fullmatch(r"[+-]?[\d.]{1,40}([eE][+-]?\d{1,2})?", part) for part in written):
        raise ValueError(text)
    parts = [Fraction(part) for part in written]
    return parts[0] / parts[1] if len(parts) == 2 else parts[0]


def _radius(value: Any, example: str) -> tuple[str, Fraction]:
    """The text of a radius without its spaces, and its value; raises ValueError showing an `example`."""
    text = re.sub(r"\s*/\s*", "/", str(value).strip())
    try:
        return text, _exact(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"'{text}' is not a number such as {example}") from None


def _check_eps(value: Any) -> str:
    text, number = _radius(value, '"8/255" or 0.03')
    if not 0 < number <= 1:
        raise ValueError(f"'{text}' is not in (0, 1]; eps is in pixel units, for instance \"8/255\"")
    return text


Eps = Annotated[str, BeforeValidator(_check_eps)]
"""Radius in pixel units, kept as written (`8/255`) because the text is the key under `robust.pgd` in the results."""


def _check_eps_l2(value: Any) -> str:
    text, number = _radius(value, '0.5 or "128/255"')
    if not number > 0:
        raise ValueError(f"'{text}' is not above 0; an L2 radius is the Euclidean length over all pixels in [0, 1]")
    return text


EpsL2 = Annotated[str, BeforeValidator(_check_eps_l2)]
"""L2 radius, kept as written."""


MEMORY_ON_CPU = "2GB"
"""What `max_memory = "auto"` allows where there is no GPU."""
_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _check_memory(value: Any) -> str:
    text = str(value).strip()
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)?", text, re.IGNORECASE)
    if found is None or float(found[1]) == 0:
        raise ValueError(f'\'{text}\' is not an amount of memory such as "2GB", "512MB" or 512 (MB)')
    return text if found[2] else f"{text}MB"


Memory = Annotated[str, BeforeValidator(_check_memory)]
"""An amount of memory, `2GB`, `512MB` (powers of ten), `2GiB` or a number of MB."""


AutoMemory = Annotated[str, BeforeValidator(lambda value: value if value == "auto" else _check_memory(value))]
"""An amount of memory, or 'auto'."""


LowPrecision = Literal["bfloat16", "float16"]
Precision = Literal["float32", LowPrecision]


def memory_bytes(memory: str) -> int:
    """Return the number of bytes that a memory text such as `2GB` stands for."""
    number = memory.rstrip("KMGIBkmgib ")
    return int(float(number) * _UNITS[memory[len(number) :].strip().upper()])


def eps_value(eps: str) -> float:
    """Return the number that an eps text such as `8/255` stands for."""
    return float(_exact(eps))


SHIPPED = ("phantom", "plain", "plain-again", "trades", "trades-small", "shortcut", "shortcut-again")
_FORMER_PREFIX = "embedded:"


def is_shipped(value: str) -> bool:
    """Whether `value` is `shipped:NAME`, weights inside the package; `embedded:NAME`, as earlier versions say, too."""
    return value.startswith(("shipped:", _FORMER_PREFIX))


def note_on_spelling(*values: str | None) -> str | None:
    """Return a sentence on those of `values` that name shipped weights as earlier versions do; None: none does."""
    former = [value for value in values if value is not None and value.startswith(_FORMER_PREFIX)]
    if not former:
        return None
    return f"'embedded:' is called 'shipped:' now: write 'shipped:{former[0].removeprefix(_FORMER_PREFIX)}'."


def _shipped_or_path(value: str) -> str:
    if is_shipped(value) and value.partition(":")[2] not in SHIPPED:
        raise ValueError(f"'{value}' is not one of the shipped weights: {', '.join('shipped:' + n for n in SHIPPED)}")
    return value


_CONTAINER = re.compile(r"([a-z][a-z0-9]+(?:-[a-z0-9]+)*):(.+)")
"""A kind of container before what it holds; no drive of Windows, whose name is one letter."""


def container_of(value: str | None) -> tuple[str, str] | None:
    """Split `hf:FOLDER` or `torchvision:NAME` into the kind and what stands behind it; None where no kind is named."""
    found = _CONTAINER.fullmatch(value or "")
    return None if found is None else (found[1], found[2])


Weights = Annotated[str, AfterValidator(_shipped_or_path)]
"""A file path, or `shipped:NAME` for weights shipped inside the package."""


class PhantomConfig(Section):
    """The built-in synthetic radiographs (`data.path = "phantom"`)."""

    calibration: int = Field(3000, ge=30, description="images in the split 'calibration'")
    audit: int = Field(600, ge=6, description="images in the split 'test'")
    marker_correlation: float = Field(0.0, ge=-1, le=1, description="correlation of the marker with having a finding")


class DataConfig(Section):
    """Which images to audit, and which disjoint images to calibrate on."""

    path: str = Field(
        description="folder or .zip with a sub-folder per class, CSV manifest, MedMNIST .npz, or 'phantom'"
    )
    format: str = Field(
        "auto",
        description="folder, zip, manifest, npz, medmnist, datasets, phantom, or a format that another package adds; "
        "auto: told by what lies there",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="settings for a format of another package")
    task: Literal["auto", "single-label", "multi-label"] = Field(
        "auto",
        description="single-label: every image is of one class; multi-label: it has any number of labels; auto: as the "
        "data look",
    )
    classes: tuple[str, ...] | None = Field(
        None, description="names of classes or labels in their order; default: as the data says"
    )
    image_size: int | None = Field(None, ge=8, le=1024, description="resize (antialiased) to this side; default: as is")
    channels: Literal[1, 3] | None = Field(None, description="convert to grey (1) or RGB (3); default: as the data is")
    white: float | None = Field(
        None,
        gt=0,
        description="pixel value that means white, such as 4095; default: the largest of the depth (255, 65535), or 1",
    )
    window: Literal["file"] | tuple[float, Annotated[float, Field(gt=1)]] | None = Field(
        None,
        description="of DICOM files: [centre, width] of what lies between black and white, in rescaled units, such as "
        "[40, 400] for soft tissue in CT; 'file': the window of each file; default: none, numbers are divided by white",
    )
    audit_split: str = Field("test", description="split whose images are audited")
    calibration_split: str | None = Field(
        None, description="default: calibration, val, valid, validation, dev or train"
    )
    masks: str | None = Field(
        None,
        description="masks of where the class's meaning lies: a folder of mask files called as the images are, or for "
        "an .npz the ending of its mask arrays, such as 'masks' for test_masks",
    )
    allow_outside: bool = Field(
        False, description="take files that a CSV manifest names outside its own folder, by whatever path or link"
    )
    groups: tuple[str, ...] = Field(
        (), description='columns of a CSV manifest, such as "site" or "sex", by whose values accuracy is compared'
    )
    phantom: PhantomConfig = PhantomConfig()
    shift: str | None = Field(
        None, description="second set of the same classes from another source, read as 'path' is; its whole audit split"
    )

    @model_validator(mode="after")
    def _white_or_window(self) -> "DataConfig":
        if self.white is not None and self.window is not None:
            raise ValueError("white and window both say which numbers are white: give one of them")
        return self

    @property
    def is_phantom(self) -> bool:
        """Whether the data are the built-in phantom."""
        return self.format == "phantom" or (self.format == "auto" and self.path == "phantom")

    @property
    def is_npz(self) -> bool:
        """Whether the data are arrays of an .npz."""
        return self.format == "npz" or (self.format == "auto" and self.path.lower().endswith(".npz"))

    @property
    def mask_arrays(self) -> str | None:
        """The ending of the mask arrays' names in the .npz; None: `masks` is absent or a folder (`./masks`)."""
        return self.masks if self.masks is not None and self.is_npz and re.fullmatch(r"\w+", self.masks) else None


class RegionsConfig(Section):
    """What the named regions of the data are to the audit."""

    confounder: tuple[str, ...] = Field(
        (),
        description="regions that no decision may rest on, such as a marker: a model whose edits lie there rather than "
        "in the region that carries the class has the index 0",
    )


class Training(Section):
    """What every training on images says: which images."""

    data: DataConfig


class QueryConfig(Section):
    """Which images are explained, and towards which class."""

    n: int = Field(48, ge=2, description="query images of each model, the same ones for all where these allow it")
    pick: Literal["correct", "wrong", "all"] = Field(
        "correct",
        description="which images of a model are explained: those it classifies correctly; those it misclassifies, "
        "towards their own class; or all, each in its way",
    )
    classes: tuple[str, ...] | None = Field(
        None, description="source classes; default: all but a fixed target, with pick = 'wrong' all"
    )
    target: str = Field(
        "nearest",
        description="of images that are classified correctly: a class name, 'nearest' or 'runner-up'",
    )
    labels: tuple[str, ...] | None = Field(
        None, description="multi-label: labels of which counterfactuals are made; default: all"
    )
    label_is: Literal["present", "absent", "both"] = Field(
        "present",
        description="multi-label: images of which a label is explained: those that have it, those without it, or both",
    )
    label_follows: tuple[str, ...] = Field(
        (),
        description="multi-label: labels that by their meaning follow from the others, such as 'no finding': their "
        "change is no off-target change of an edit",
    )


class GeneratorConfig(Section):
    """The one generator that draws every counterfactual."""

    path: Weights = Field("shipped:phantom", description="the generator's file")
    format: str = Field(
        "auto",
        min_length=1,
        description="auto: a StyleGAN2 file, whose layout is recognised; or the name of a reader that a package adds",
    )

    @model_validator(mode="after")
    def _path_of_another_format(self) -> "GeneratorConfig":
        if self.format != "auto" and "path" not in self.model_fields_set:
            raise ValueError(f"format = '{self.format}' reads a path: give one")
        return self


class InversionConfig(Section):
    """How query images are brought into the generator's latent space (once, for all models)."""

    method: Literal["encoder", "optimise", "pti"] = Field(
        "pti",
        description="encoder: the encoder's code as it is; optimise: the pivot, no tuning; pti: pivotal tuning, too",
    )
    encoder: str | None = Field(None, description="encoder weights; default: those beside the generator, else none")
    pivot_steps: int = Field(80, ge=0, description="steps of W+ optimisation from the encoder's or a random code")
    pivot_lr: float = Field(0.1, gt=0, description="in units of the spread of random codes")
    pivot_delta_weight: float = Field(3e-4, ge=0, description="pull of the pivot towards W, in the same units")
    deltas: Literal["full", "low-rank"] = Field(
        "low-rank", description="form of the per-image changes of the generator's weights"
    )
    rank: int = Field(16, ge=1, description="rank of the change of a convolution's weights in the form low-rank")
    max_memory: Memory | None = Field(
        None, description="bound on what the images inverted together take; default: the audit's max_memory"
    )
    tuning_steps: int = Field(350, ge=0, description="steps of pivotal tuning of per-image generator weights")
    tuning_lr: float = Field(8e-3, gt=0, description="learning rate of pivotal tuning")
    stop_mse: float = Field(9e-5, ge=0, description="an image stops being tuned at this mean squared error in [0, 1]")
    l2_weight: float = Field(1.0, ge=0, description="weight of the mean squared error")
    perceptual_weight: float = Field(1e-3, ge=0, description="weight of the perceptual distance")
    locality_weight: float = Field(
        0.03, ge=0, description="weight of the likeness to the untuned generator near the pivot"
    )
    locality_alpha: float | None = Field(
        None, gt=0, description="distance from the pivot at which locality is held; default: sqrt(w_dim)"
    )
    batch_size: int = Field(32, ge=1, description="most images inverted together")


def _distinct(methods: str | tuple[str, ...]) -> str | tuple[str, ...]:
    names = (methods,) if isinstance(methods, str) else methods
    if not names or not all(names):
        raise ValueError("it names no method; give at least one")
    if len(set(names)) < len(names):
        raise ValueError(f"it names a method twice: {', '.join(names)}")
    return methods


Methods = Annotated[str | tuple[str, ...], AfterValidator(_distinct)]
"""The name of a counterfactual method, or a list of names."""


class CounterfactualConfig(Section):
    """SPRUCE: exceptional features and latent optimisation (docs/design.md)."""

    method: Methods = Field(
        "spruce",
        description="a built-in method (docs/extending.md), or one that another package adds; of a list the first one "
        "is audited, and the others are compared with it",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="settings of a method of another package, as that package says"
    )
    features: Literal["auto", "mixture", "hurdle"] = Field(
        "auto",
        description="model of a feature's distribution; auto: hurdle where over 5 % of a class's activations are 0",
    )
    mixture_components: int = Field(5, ge=1, le=20, description="Gaussians per feature and class")
    exceptional_threshold: float = Field(
        0.05, gt=0, lt=0.5, description="two-tailed probability below which a feature is exceptional"
    )
    sign_filter: Literal["contrast", "target"] = Field(
        "contrast",
        description="what speaks for the target: contrast: its weights less the source's; target: its weights alone",
    )
    loss: Literal["standardised", "raw"] = Field(
        "standardised",
        description="standardised: features in units of their deviation, and means; raw: the sums of the thesis",
    )
    balance: Literal["adaptive", "fixed"] = Field(
        "adaptive", description="adaptive: each image eases or tightens the sparsity terms to meet the operating point"
    )
    operating_point_cap: float = Field(
        0.9, gt=0.5, le=1, description="most confidence asked for, however sure the model is of real images; 1: no cap"
    )
    shrink: bool = Field(True, description="spruce: make the edit that was found smaller until it no longer shrinks")
    shrink_steps: int = Field(120, ge=1, description="spruce: most steps of making it smaller")
    steps: int = Field(100, ge=1, description="steps of the search; with shrink until the operating point is reached")
    lr: float = Field(0.1, gt=0, description="in units of the spread of random codes")
    choose: Literal["reached", "sparsest", "last"] = Field(
        "reached",
        description="spruce: which iterate is the counterfactual: reached: the sparsest at the operating point; "
        "sparsest: the sparsest that flips; last: the last one; the latter two need shrink = false",
    )
    perceptual_weight: float | None = Field(
        None,
        ge=0,
        description="spruce: weight of the perceptual distance to the query image; default: 0.1, and 0 with shrink, "
        "which makes the pixel change small itself",
    )
    latent_weight: float | None = Field(
        None, ge=0, description="default: 0.9216 (of the mean absolute change of w+); raw: 1e-4 (of the sum, at 14x512)"
    )
    image_weight: float | None = Field(
        None, ge=0, description="default: 30 (of the mean absolute pixel change); raw: 1e-6 (of the sum, at 3x256x256)"
    )
    queries: int = Field(2000, ge=1, description="gradient-free: most answers asked for each image")
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of an image's gradient")
    batch_size: int = Field(32, ge=1, description="most images explained together")
    min_calibration: int = Field(30, ge=2, description="fewest calibration images that a model assigns to a class")

    @model_validator(mode="after")
    def _only_edits_at_the_operating_point_shrink(self) -> "CounterfactualConfig":
        if self.shrink and self.choose != "reached":
            raise ValueError(
                "shrink makes the edits at the operating point smaller, which are not those that choose = "
                f"'{self.choose}' takes: set shrink = false or choose = 'reached'"
            )
        return self

    @property
    def steering_weight(self) -> float:
        """Weight of the perceptual distance in the search; with 0 no perceptual network is run."""
        if self.perceptual_weight is not None:
            return self.perceptual_weight
        return 0.0 if self.shrink else 0.1

    @property
    def methods(self) -> tuple[str, ...]:
        """The names of all methods, the audited one first."""
        return (self.method,) if isinstance(self.method, str) else self.method


def _attack_name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z][\w-]*(:\w+)?", value):
        raise ValueError(f'\'{value}\' is no name of an attack such as "pgd" or "torchattacks:CW"')
    return value


AttackName = Annotated[str, AfterValidator(_attack_name)]
"""Name of an attack; which ones there are, the registry of attacks knows (`audit.robustness.attacks.registry`)."""


class EnsembleConfig(Section):
    """The cascade of attacks called `ensemble`; each stage attacks only what the stages before it left standing."""

    stages: tuple[AttackName, ...] = Field(
        ("apgd-ce", "apgd-t", "fab-t", "square"), min_length=1, description="attacks by name, in their order"
    )
    apgd_steps: int = Field(100, ge=1, description="steps of Auto-PGD, for each loss and target class")
    apgd_restarts: int = Field(1, ge=1, description="starts of Auto-PGD")
    target_classes: int = Field(9, ge=1, description="most target classes of apgd-t and fab-t; never more than K - 1")
    fab_steps: int = Field(100, ge=1, description="steps of FAB for each target class")
    square_queries: int = Field(5000, ge=1, description="queries of Square for each image")


class TrustConfig(Section):
    """Checks that tell whether robust accuracy may be believed; a failed one marks it untrusted."""

    n: int = Field(64, ge=8, description="images (the first of those attacked) on which the checks are run")
    square_queries: int = Field(500, ge=1, description="queries of the black-box attack that must not beat PGD")
    more_steps: int = Field(5, ge=2, description="factor by which the number of PGD steps is raised")


class DistanceConfig(Section):
    """Smallest perturbation that fools the model, for each image, by bisection over eps."""

    norms: tuple[Literal["Linf", "L2"], ...] = Field(
        ("Linf",), min_length=1, description="norms in which it is measured"
    )
    n: int = Field(100, ge=1, description="images (the first of those attacked)")
    largest_linf: Eps = Field("64/255", description="a distance beyond this is only known to be larger")
    largest_l2: float = Field(5.0, gt=0, description="as largest_linf")
    bisections: int = Field(8, ge=1, description="halvings of the interval that holds the distance")


class CorruptionsConfig(Section):
    """Accuracy under the corruptions of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich 2019)."""

    constants: Literal["auto", "imagenet-c", "cifar-c"] = Field(
        "auto", description="published severities; auto: cifar-c up to 64 pixels (shorter side), imagenet-c above"
    )
    names: tuple[str, ...] | None = Field(None, min_length=1, description="default: all 15")
    severities: tuple[Annotated[int, Field(ge=1, le=5)], ...] = Field(
        (1, 2, 3, 4, 5), min_length=1, description="severities of each corruption"
    )
    n: int = Field(500, ge=1, description="images of the audit split (first n of the attacked order)")


class VulnerabilityConfig(Section):
    """Which pixels of an attack a model really needs, learnt by a small U-Net."""

    eps: Eps = Field("8/255", description="radius of the PGD attack that is thinned out")
    share: float = Field(0.1, gt=0, lt=1, description="share of pixels the map is trained to keep")
    shares: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0), min_length=2, description="shares at which accuracy is measured"
    )
    steps: int = Field(300, ge=1, description="training steps of the U-Net")
    batch_size: int = Field(32, ge=1, description="images per training step")
    lr: float = Field(1e-3, gt=0, description="learning rate of the U-Net")
    temperature: float = Field(1.0, gt=0, description="of the relaxed choice of pixels")
    n: int = Field(200, ge=1, description="images of the audit split on which the map is measured")
    tolerance: float = Field(0.05, ge=0, lt=1, description="loss of success at which a thinned attack still counts")


def switched(value: Any) -> Any:
    """Read `true` as the table with its defaults and `false` as none."""
    return {} if value is True else None if value is False else value


class RobustnessConfig(Section):
    """Clean, adversarial and natural robustness; every model meets the same images."""

    n: int = Field(500, ge=1, description="images of the audit split that are attacked (first n of a seeded order)")
    attacks: tuple[AttackName, ...] = Field(
        ("pgd",),
        min_length=1,
        description="pgd, ensemble, a single attack of the ensemble, rotation-translation, transfer (the images "
        "made for the other models), torchattacks:CLASS, or one of another package",
    )
    eps: tuple[Eps, ...] = Field(("2/255", "8/255"), description="L-inf radii")
    l2_eps: tuple[EpsL2, ...] = Field((), description="L2 radii, Euclidean over all pixels of an image in [0, 1]")
    steps: int = Field(20, ge=1, description="steps of PGD")
    step_size: float | None = Field(None, gt=0, description="PGD: in pixel units; default 2.5 * eps / steps")
    momentum: float = Field(0.0, ge=0, description="PGD: decay of the accumulated gradient (MI-FGSM); 0: none")
    restarts: int = Field(1, ge=1, description="starts of PGD")
    batch_size: int = Field(128, ge=1, description="most images given to a model together")
    ensemble: EnsembleConfig = EnsembleConfig()
    label_weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default_factory=dict,
        description="multi-label: what the fall of a label counts in the attack on all labels together; of those that "
        "are not named nothing, where any is named; default: 1 for each",
    )
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="keyword arguments of an attack, by its name: of torchattacks, the class's"
    )
    trust: TrustConfig | None = Field(TrustConfig(), description="false: no checks, and robust accuracy is unverified")
    distance: DistanceConfig | None = Field(None, description="absent: minimal distances are not measured")
    corruptions: CorruptionsConfig | None = Field(None, description="absent: natural corruptions are not measured")
    vulnerability: VulnerabilityConfig | None = Field(None, description="absent: no vulnerability map")

    @model_validator(mode="after")
    def _some_radius(self) -> "RobustnessConfig":
        if not self.eps and not self.l2_eps:
            raise ValueError("eps and l2_eps are both empty; give at least one radius")
        return self

    @model_validator(mode="after")
    def _each_attack_once(self) -> "RobustnessConfig":
        for key, names in (("attacks", self.attacks), ("ensemble.stages", self.ensemble.stages)):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{key} names '{twice[0]}' twice; name each attack once")
        return self

    @field_validator("trust", "distance", "corruptions", "vulnerability", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return switched(value)


Place = Literal["top left", "top right", "bottom left", "bottom right", "centre"]


class TokenConfig(Section):
    """A picture of your own that is pasted onto the images: a logo, a stamp, a marker as your devices make it."""

    name: str = Field(min_length=1, pattern=r"^[\w -]+$", description="name in results and report")
    path: str = Field(description="PNG; where it is transparent the image shows through")
    sizes: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (0.06, 0.1, 0.15), min_length=1, description="longer side of the token, as shares of the image's shorter side"
    )
    places: tuple[Place, ...] = Field(
        ("top left", "top right", "bottom left", "bottom right"), min_length=1, description="where it is pasted"
    )

    @field_validator("sizes")
    @classmethod
    def _rising(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(value)))


class RelianceConfig(Section):
    """What the models decide by: how decisions react to changes that carry no meaning (docs/reliance.md)."""

    n: int = Field(200, ge=1, description="images of the audit split (first n of the attacked order)")
    interventions: tuple[str, ...] | None = Field(
        None,
        description="names of interventions, built in or added by another package; default: the built-in ones "
        "but for pacemaker",
    )
    tokens: tuple[TokenConfig, ...] = Field((), description="tokens of your own, pasted beside the built-in ones")
    clusters: int = Field(
        8,
        ge=0,
        description="groups of images that look alike, on which accuracy is compared besides data.groups; 0: none",
    )
    min_group: int = Field(20, ge=2, description="fewest images of a group that anything is said of")

    @model_validator(mode="after")
    def _each_once(self) -> "RelianceConfig":
        for key, names in (("interventions", self.interventions or ()), ("tokens", [t.name for t in self.tokens])):
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"{key} names '{twice[0]}' twice; name each once")
        return self


def is_embedding_file(value: str) -> bool:
    """Whether `value`, which names an embedding, is the file of a domain embedding and not a word."""
    return value.endswith(".safetensors")


class MetricsConfig(Section):
    """Embeddings and perceptual distances; each is named wherever a number rests on it."""

    # Their words are those of `audit.embeddings.resolve`, which the run checks when it starts.
    embedding: str = Field(
        "auto",
        min_length=1,
        description="what realism and the judge rest on: phantom-factors, discriminator, or the .safetensors of a "
        "domain embedding (`spruce-audit train embedding`); auto: phantom-factors for the phantom, else discriminator",
    )
    perceptual: str = Field(
        "auto",
        min_length=1,
        description="whose feature maps the perceptual distance rests on, which inversion and search also minimise: "
        "the same choice as for embedding, and independent of it",
    )
    realism_kernel: Literal["energy", "cmmd"] = Field(
        "energy",
        description="distance behind realism: energy distance, which sees spread as well as place; or CMMD's kernel, "
        "which sees hardly more than means (as earlier versions did)",
    )
    canonical: Literal["auto", "off", "require"] = Field(
        "auto", description="Inception FID, LPIPS and CMMD: where their weights are on the machine / never / or fail"
    )
    min_images: int = Field(16, ge=2, description="FID and MMD are refused on fewer images than this")
    axioms: int = Field(
        5,
        ge=0,
        description="query images on which it is tried whether the way back from a counterfactual ends at the start; "
        "costs one more counterfactual for each image and model; 0: none",
    )
    null_edits: int = Field(
        1,
        ge=1,
        description="how often in a row the images of axioms are inverted, without an edit, to see what that alone "
        "changes (10 in the literature); each time costs as much as inverting them",
    )


class AttributionConfig(Section):
    """Attribution maps of the models' decisions, to compare with the edits of counterfactuals."""

    methods: tuple[Literal["grad-cam", "integrated-gradients", "occlusion"], ...] = Field(
        ("grad-cam", "integrated-gradients", "occlusion"),
        min_length=1,
        description="all but grad-cam by captum: pip install 'spruce-audit[attribution]'",
    )
    n: int = Field(
        24, ge=1, description="images: the first query images of each model; without counterfactuals of those attacked"
    )
    steps: int = Field(32, ge=2, description="points on the way of integrated-gradients, from the image's mean grey")
    window: float = Field(0.125, gt=0, le=1, description="side of what occlusion covers, of the shorter side")


class RankingConfig(Section):
    """Weights of the index's components and the bootstrap."""

    validity: float = Field(1.0, ge=0, description="weight in the index")
    realism: float = Field(1.0, ge=0, description="weight in the index")
    sparsity: float = Field(1.0, ge=0, description="weight in the index")
    localisation: float = Field(
        4.0,
        ge=0,
        description="weight in the index; by default that of the four others together: it alone says what a decision "
        "rests on, they say how good a counterfactual is",
    )
    transfer: float = Field(1.0, ge=0, description="weight in the index")
    bootstrap: int = Field(1000, ge=100, description="draws of query images behind intervals and order")
    separation: float = Field(0.95, gt=0.5, lt=1, description="probability above which two models do not share a rank")

    @model_validator(mode="after")
    def _some_weight(self) -> "RankingConfig":
        if not any((self.validity, self.realism, self.sparsity, self.localisation, self.transfer)):
            raise ValueError("at least one component needs a weight above 0")
        return self


def _per_channel(value: Any) -> Any:
    """Read one number as the same for every channel; raises ValueError for what is no number or list of numbers."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        raise ValueError(
            f"{value!r} is not a number or a list of numbers, one per channel, such as [0.485, 0.456, 0.406]"
        )
    return tuple(values)


PerChannel = Annotated[tuple[float, ...], BeforeValidator(_per_channel)]
"""One number per channel, or one for all."""


def _one_side(value: Any) -> Any:
    """Read `[224, 224]` as 224; raises ValueError for sides that differ."""
    if isinstance(value, list | tuple):
        sides = list(value)[-2:]
        if len(sides) != 2 or sides[0] != sides[1]:
            raise ValueError(f"{list(value)} is not one side of a square such as 224; other shapes cannot be audited")
        return sides[0]
    return value


def _shown(values: Sequence[float], digits: int = 6) -> str:
    return f"[{', '.join(f'{v:.{digits}g}' for v in values)}]"


def why_not_pixel_units(mean: Sequence[float] | None, std: Sequence[float] | None) -> str | None:
    """Say what is wrong with a normalisation of pixels in [0, 1], with the right values; None where nothing is."""
    if std is not None and any(not v > 0 for v in std):
        return f"std = {_shown(std)} holds a value that is not above 0: give the standard deviation of each channel"
    if mean is not None and any(v < 0 for v in mean):
        return f"mean = {_shown(mean)} holds a value below 0 where pixels are in [0, 1]: give the mean of each channel"
    largest = max([*(mean or ()), *(std or ())], default=0.0)
    if largest <= 1:
        return None
    scale = 255 if largest <= 255 else 65535
    # Where the means are in such units, a std of 1 is as well: the network was fed 0 to 255 less the mean.
    units = {
        "mean": mean if mean is not None and max(mean) > 1 else None,
        "std": std if std is not None and (max(std) > 1 or set(std) == {1}) else None,
    }
    written = " and ".join(f"{key} = {_shown(values)}" for key, values in units.items() if values is not None)
    right = ", ".join(
        f"{key} = {_shown([v / scale for v in values], 4)}" for key, values in units.items() if values is not None
    )
    verb = "are" if " and " in written else "is"
    return f"{written} {verb} in units of 0 to {scale} where pixels are in [0, 1]: set {right}"


Threshold = Annotated[float, Field(gt=0, lt=1)]


LARGEST_SIDE = 4096
"""Of a network's input; a file may claim any, and images are enlarged to it."""


class ClassifierConfig(Section):
    """One trained classifier: an architecture and its checkpoint, a file or folder that holds both, or a factory."""

    name: str = Field(min_length=1, description="name in results and report")
    role: Literal["baseline"] | None = Field(
        None, description="the model that a gate compares the others with, one at most; absent: audited like any other"
    )
    architecture: str | None = Field(
        None, description="timm model name; torchvision:NAME, xrv:NAME; hf-hub:ORG/NAME or timm:NAME brings its weights"
    )
    architecture_args: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments for the architecture"
    )
    factory: str | None = Field(None, description="import path 'package.module:factory' that returns a torch module")
    factory_args: dict[str, Any] = Field(default_factory=dict, description="keyword arguments for the factory")
    checkpoint: Weights | None = Field(None, description="state dict (.pt, .pth) or .safetensors for the architecture")
    weights_key: str | None = Field(
        None,
        min_length=1,
        description="where in the checkpoint the weights are, such as state_dict_ema; default: found",
    )
    file: str | None = Field(
        None, description="TorchScript (.pt, .ts), torch.export (.pt2) or ONNX (.onnx) file; hf:FOLDER, monai:FOLDER"
    )
    allow_code: bool = Field(
        False,
        description="run a TorchScript or torch.export file that does more than arithmetic, with all your rights; for "
        "all: --allow-code",
    )
    classes: tuple[str, ...] | None = Field(
        None, description="class names in the model's output order; those that the data have not are left out"
    )
    mean: PerChannel | None = Field(None, description="of pixels in [0, 1]; one number per channel, or one for all")
    std: PerChannel | None = Field(None, description="standard deviation, as mean")
    input_size: Annotated[int, BeforeValidator(_one_side)] | None = Field(
        None, ge=8, le=LARGEST_SIDE, description="side the model wants; default: timm's, else the data's"
    )
    channels: Literal[1, 3] | None = Field(None, description="channels it wants; default: timm's, else the data's")
    output: str | Annotated[int, Field(strict=True)] | None = Field(
        None, description="name or place of the tensor to read where the network returns several; default: found"
    )
    head: str | None = Field(None, min_length=1, description="the one of several heads, by its name in that output")
    scale: Literal["logits", "probabilities"] | None = Field(
        None, description="what its numbers are; default: found by running it"
    )
    threshold: Threshold | dict[str, Threshold] | None = Field(
        None,
        description="probability of the second class from which a classifier of two decides for it; of labels, from "
        "which each is said to be there, one number or one by label; default: 0.5",
    )
    features: str | None = Field(
        None,
        min_length=1,
        description="module whose output are the features, such as 'layer4'; default: the input of the final linear "
        "layer, and of a network without one its logits",
    )

    @model_validator(mode="after")
    def _one_source(self) -> "ClassifierConfig":
        given = [k for k in ("architecture", "factory", "file") if getattr(self, k) is not None]
        if len(given) > 1 or (not given and self.checkpoint is None):
            raise ValueError(
                f"classifier '{self.name}' needs exactly one of architecture (timm name), factory, file, "
                f'or a checkpoint that names its architecture, such as "shipped:NAME"; '
                f"given: {', '.join(given) or 'none'}"
            )
        if given and given[0] == "architecture" and self.checkpoint is None and not container_of(self.architecture):
            raise ValueError(f"classifier '{self.name}' needs a checkpoint beside its {given[0]}")
        idle = {
            "checkpoint": self.file is not None and self.checkpoint is not None,
            "weights_key": self.weights_key is not None and self.checkpoint is None,
            "allow_code": self.allow_code and (self.file is None or container_of(self.file) is not None),
            "architecture_args": bool(self.architecture_args) and self.architecture is None,
            "factory_args": bool(self.factory_args) and self.factory is None,
            "role": self.role is not None and isinstance(self, JudgeConfig),
        }
        for key in (k for k, unused in idle.items() if unused):
            raise ValueError(f"'{key}' of classifier '{self.name}' would have no effect: remove it")
        return self

    @model_validator(mode="after")
    def _in_pixel_units(self) -> "ClassifierConfig":
        why = why_not_pixel_units(self.mean, self.std)
        if why is not None:
            raise ValueError(f"classifier '{self.name}': {why}")
        return self


class JudgeConfig(ClassifierConfig):
    """A classifier that judges counterfactuals and is not audited."""

    copy_of: str | None = Field(
        None,
        description="name of the audited classifier that it was trained like, from another seed: it says whether it "
        "shares that one's flips, and nothing else; absent: one of the judges of transfer, for all models",
    )


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "spruce-thesis": {
        "counterfactual": {
            "features": "mixture",
            "mixture_components": 5,
            "sign_filter": "target",
            "loss": "raw",
            "balance": "fixed",
            "operating_point_cap": 1.0,
            "shrink": False,
            "choose": "last",
            "perceptual_weight": 0.1,
            "latent_weight": 1e-4,
            "image_weight": 1e-6,
        },
        "inversion": {"method": "pti", "l2_weight": 1.0, "perceptual_weight": 1.0},
        "metrics": {"perceptual": "lpips-vgg"},
    }
}
"""Settings by preset and table. "spruce-thesis": Litsos 2025, equations 5.5.8 and 5.6.1 to 5.6.6, to the letter."""


Effort = Literal["quick", "standard", "thorough"]

EFFORTS: dict[str, dict[str, dict[str, Any]]] = {
    "quick": {
        "queries": {"n": 24},
        "robustness": {
            "n": 100,
            "steps": 10,
            "ensemble": {"apgd_steps": 50, "fab_steps": 50, "square_queries": 1000},
            "trust": {"n": 32, "square_queries": 200},
        },
        "reliance": {"n": 64},
        "metrics": {"axioms": 0},
    },
    "thorough": {
        "queries": {"n": 128},
        "robustness": {
            "n": 1000,
            "steps": 100,
            "restarts": 5,
            "trust": {"n": 128, "square_queries": 2000},
        },
        "reliance": {"n": 500},
        "metrics": {"axioms": 16},
        "ranking": {"bootstrap": 5000},
    },
}
"""How many images and steps an audit takes where the configuration does not say; "standard" are the defaults.

Inversion and search are the same at every effort: a counterfactual of a quick audit is as good as any, there are fewer.
"""


def _beneath(given: Any, defaults: Mapping[str, Any]) -> Any:
    """Fill what is not `given` of a table, and of the tables within it, with `defaults`."""
    if not isinstance(given, dict):
        return given
    filled = {k: _beneath(given.get(k, {}), v) if isinstance(v, dict) else given.get(k, v) for k, v in defaults.items()}
    return given | filled


class AuditConfig(Section):
    """A whole audit. Relative paths are relative to the configuration file."""

    preset: Literal["spruce-thesis"] | None = Field(
        None,
        description="settings that stand in for the defaults of many keys (docs/design.md); a key that is given wins",
    )
    effort: Effort = Field(
        "standard",
        description="quick, thorough: fewer or more images and attack steps where a key is not given "
        "(docs/guide.md#how-much-to-measure); `run --quick` and `--thorough` set it, too",
    )
    name: str = Field("audit", description="title of the report")
    seed: int = Field(0, ge=0, description="everything that is drawn at random follows from it")
    device: str = Field("auto", description="'auto' takes a GPU when there is one; or 'cpu', 'cuda', 'cuda:1', 'mps'")
    compiled: Literal["auto", "on", "off"] = Field(
        "auto",
        description="whether the certificate of loading compares each model with what torch.compile makes of it, half "
        "a minute and more a model; auto: on a GPU",
    )
    precision: Precision = Field(
        "float32",
        description="of gradients of PGD and of answers to corrupted and changed images, for models whose decisions it "
        "does not change (docs/robustness.md#in-16-bits)",
    )
    max_memory: AutoMemory = Field(
        "auto",
        description="bound on what the images worked on together take, measured: batches are worked on in parts that "
        "fit; auto: 2GB, and half of a GPU's memory",
    )
    data: DataConfig
    regions: RegionsConfig = RegionsConfig()
    queries: QueryConfig = QueryConfig()
    generator: GeneratorConfig | None = Field(None, description="absent: robustness only, no counterfactuals")
    inversion: InversionConfig = InversionConfig()
    counterfactual: CounterfactualConfig = CounterfactualConfig()
    robustness: RobustnessConfig = RobustnessConfig()
    reliance: RelianceConfig | None = Field(RelianceConfig(), description="false: what models rely on is not measured")
    metrics: MetricsConfig = MetricsConfig()
    ranking: RankingConfig = RankingConfig()
    attribution: AttributionConfig | None = Field(None, description="absent: no attribution maps")
    classifiers: tuple[ClassifierConfig, ...] = Field(min_length=1)
    judge_checkpoints: tuple[JudgeConfig, ...] = Field(
        (), description="classifiers that are not audited and only judge the counterfactuals of those that are"
    )

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        preset, effort = PRESETS.get(str(values.get("preset")), {}), EFFORTS.get(str(values.get("effort")), {})
        return _beneath(_beneath(values, preset), effort)

    @field_validator("reliance", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        return switched(value)

    @model_validator(mode="after")
    def _unique_names(self) -> "AuditConfig":
        audited = [c.name for c in self.classifiers]
        names = [*audited, *(j.name for j in self.judge_checkpoints)]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"classifier and judge names must differ; used twice: {', '.join(twice)}")
        baselines = [c.name for c in self.classifiers if c.role == "baseline"]
        if len(baselines) > 1 or len(baselines) == len(self.classifiers):
            raise ValueError(
                f'role = "baseline" is given to {", ".join(baselines)}: it is for one classifier, beside at least one '
                "other that is compared with it"
            )
        for judge in self.judge_checkpoints:
            if judge.copy_of is not None and judge.copy_of not in audited:
                raise ValueError(
                    f"judge '{judge.name}' is a copy_of '{judge.copy_of}', which is no audited classifier: name one of "
                    f"{', '.join(audited)}"
                )
        return self


S = TypeVar("S", bound=Section)
T = TypeVar("T", bound="Training")


Location = Sequence[str | int]
"""Keys and places in lists that lead to a value of a configuration; pydantic also puts names of types among them."""


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The table that a field of this annotation holds, if it holds one or several."""
    candidates = [annotation, *get_args(annotation)]
    return next((one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _tables(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yield every table of the file that `model` describes, as its path and its keys."""
    yield path, list(model.model_fields)
    for name, field in model.model_fields.items():
        if (inner := _inner(field.annotation)) is not None:
            yield from _tables(inner, (*path, name))


def _hint(model: type[BaseModel], path: Location) -> str:
    """What to do about the unknown key that `path` ends with."""
    keys = [part for part in path if isinstance(part, str)]
    known = dict(_tables(model))
    valid = known.get(tuple(keys[:-1]), [])
    if near := difflib.get_close_matches(keys[-1], valid, n=1, cutoff=0.6):
        return f"did you mean '{near[0]}'?"
    homes = [".".join(table) for table, names in known.items() if keys[-1] in names]
    if len(homes) == 1:
        return f"it is a key of {f'[{homes[0]}]' if homes[0] else 'the top of the file'}, move it there."
    return f"remove it, or write one of {', '.join(valid)}." if valid else "remove it."


def _at(values: Any, path: Location) -> Any:
    """The value at `path`; raises LookupError or TypeError if there is none."""
    for part in path:
        values = values[part]
    return values


def _known_part(values: Any, path: Location) -> Location:
    """The longest part of `path` from its beginning at which there is a value."""
    for end in range(len(path), 0, -1):
        with suppress(LookupError, TypeError):
            _at(values, path[:end])
            return path[:end]
    return ()


def _line_of(text: str, path: Location) -> int | None:
    """The line of a TOML file at which the value at `path` begins: the first up to which the file holds it.

    tomllib tells no places; but what stands before the end of a statement is TOML, too.
    """
    keys = [part for part in path if isinstance(part, str)]
    lines = text.split("\n")

    def is_there(number: int) -> bool:
        for end in range(number, len(lines) + 1):
            with suppress(tomllib.TOMLDecodeError):
                return len(_known_part(tomllib.loads("\n".join(lines[:end])), path)) == len(path)
        return False

    return next((n for n, line in enumerate(lines, 1) if keys and keys[-1] in line and is_there(n)), None)


def _sentence(error: ValidationError, model: type[BaseModel], values: Mapping[str, Any], source: str, text: str) -> str:
    first = error.errors()[0]
    path, there = tuple(first["loc"]), _known_part(values, first["loc"])
    line = _line_of(text, there)
    if line is not None:
        source = f"{source}, line {line}"
    if first["type"] == "extra_forbidden":
        where = ".".join(map(str, path))
        if len(path) == 1 and issubclass(model, Section) and path[0] in model.replaced:
            return f"Key '{where}' in {source} is of an earlier version: {model.replaced[str(path[0])]}."
        return f"Unknown key '{where}' in {source}: {_hint(model, path)}"
    if first["type"] == "missing":
        return f"Key '{'.'.join(map(str, path))}' is missing in {source}: add it."
    where = ".".join(map(str, there or path)) or "the file"
    message = first["msg"].removeprefix("Value error, ")
    return f"Key '{where}' in {source}{'' if line is None else ','} is not valid: {message}."


def parse_config(model: type[S], values: Mapping[str, Any], source: str, text: str = "") -> S:
    """Validate `values` as `model`; raises ConfigError with one sentence naming key, place and remedy.

    `text` is the TOML that the values come from, if any: the sentence then names the line, too.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        raise ConfigError(_sentence(error, model, values, source, text)) from None


def _read(path: str | Path) -> tuple[dict[str, Any], str]:
    """Read a TOML file: its values and its text. Raises ConfigError."""
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"Configuration file '{file}' does not exist: check the path.")
    try:
        text = file.read_text(encoding="utf-8-sig")
        return tomllib.loads(text), text
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"Configuration file '{file}' is not valid TOML: {error}.") from None


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file; raises ConfigError if it is missing or not TOML."""
    return _read(path)[0]


def read_config(model: type[S], path: str | Path, **changes: Any) -> S:
    """Read a TOML file as `model`, with `changes` of its keys; raises ConfigError naming file, line, key and remedy."""
    values, text = _read(path)
    return parse_config(model, values | changes, f"'{path}'", text)


def load_training(
    model: type[T], path: str | Path, *files: str, names: tuple[str, ...] = (), embeddings: tuple[str, ...] = ()
) -> T:
    """Read a training's TOML file as `model`; `data.path` and the keys `files` are made absolute against its folder.

    Values among `names` are no files and stay, and so do the words in the keys `embeddings`. Raises ConfigError.
    """
    config = read_config(model, path)
    base = Path(path).resolve().parent
    resolved: dict[str, Any] = {"data": _with_absolute_paths(config.data, ("path", *_mask_folder(config.data)), base)}
    given = {key: getattr(config, key) for key in files}
    resolved |= {k: resolve_path(v, base) for k, v in given.items() if v is not None and v not in names}
    resolved |= {k: embedding_path(getattr(config, k), base) for k in embeddings}
    if (note := note_on_spelling(*given.values())) is not None:
        logging.getLogger(__name__).warning(note)
    return config.model_copy(update=resolved)


def resolve_path(value: str, base: Path) -> str:
    """Make a path of a configuration absolute, relative to the folder `base`; a name that is not a path stays.

    Names are `shipped:NAME`, 'phantom' and `package.module:factory`; `folder/file.py:factory` is a path. Raises
    ConfigError for what can be none.
    """
    if is_shipped(value) or value == "phantom":
        return value
    head, _, attribute = value.rpartition(":")
    if attribute.isidentifier() and head:
        return f"{resolve_path(head, base)}:{attribute}" if head.endswith(".py") else value
    try:
        return str((base / Path(value).expanduser()).resolve())
    except (ValueError, RuntimeError) as error:  # a NUL in it; a home folder of nobody
        raise ConfigError(f"'{value}' cannot be a path ({error}): correct it.") from None


def embedding_path(value: str, base: Path) -> str:
    """Make the file of an embedding absolute, relative to the folder `base`; a word stays."""
    return resolve_path(value, base) if is_embedding_file(value) else value


def load_config(path: str | Path, effort: Effort | None = None) -> AuditConfig:
    """Read an audit's TOML file; its relative paths are made absolute. Raises ConfigError.

    An `effort` comes before the file's.
    """
    changes = {} if effort is None else {"effort": effort}
    return resolve_paths(read_config(AuditConfig, path, **changes), Path(path).resolve().parent)


def with_baseline(config: AuditConfig, checkpoint: str | Path) -> AuditConfig:
    """Return `config` with one more classifier: its only one, with the weights of `checkpoint`, as the baseline.

    Raises ConfigError where it is not clear which classifier that would be like.
    """
    names = [one.name for one in config.classifiers]
    if len(names) > 1:
        raise ConfigError(
            f"--baseline takes the settings of the only classifier, and the configuration has {', '.join(names)}: "
            'give the old checkpoint a [[classifiers]] table of its own, with role = "baseline".'
        )
    (candidate,) = config.classifiers
    key = "checkpoint" if candidate.checkpoint is not None else "file"
    if getattr(candidate, key) is None or container_of(candidate.file) is not None:
        raise ConfigError(
            f"--baseline stands in for the checkpoint of '{names[0]}', which has none of its own: give the old model a "
            '[[classifiers]] table with role = "baseline".'
        )
    place = str(checkpoint) if is_shipped(str(checkpoint)) else str(Path(checkpoint).expanduser().resolve())
    taken = {candidate.name, *(judge.name for judge in config.judge_checkpoints)}
    name = next(n for n in ("baseline", f"{candidate.name} (baseline)") if n not in taken)
    old = candidate.model_copy(update={"name": name, "role": "baseline", key: place})
    return config.model_copy(update={"classifiers": (candidate, old)})


def _with_absolute_paths(section: S, keys: tuple[str, ...], base: Path) -> S:
    given = {key: getattr(section, key) for key in keys}
    return section.model_copy(update={key: resolve_path(v, base) for key, v in given.items() if v is not None})


def _mask_folder(data: DataConfig) -> tuple[str, ...]:
    return () if data.mask_arrays else ("masks",)


def _with_place(one: ClassifierConfig, base: Path) -> ClassifierConfig:
    """Make `file` absolute; a kind of container stays before it."""
    contained = container_of(one.file)
    if contained is None:
        return _with_absolute_paths(one, ("file",), base)
    kind, place = contained
    return one.model_copy(update={"file": f"{kind}:{resolve_path(place, base)}"})


def resolve_paths(config: AuditConfig, base: Path) -> AuditConfig:
    """Return `config` with every relative path made absolute against the folder `base`."""
    fix = partial(_with_absolute_paths, base=base)
    return config.model_copy(
        update={
            "data": fix(config.data, ("path", "shift", *_mask_folder(config.data))),
            "generator": None if config.generator is None else fix(config.generator, ("path",)),
            "inversion": fix(config.inversion, ("encoder",)),
            "reliance": None
            if config.reliance is None
            else config.reliance.model_copy(
                update={"tokens": tuple(fix(token, ("path",)) for token in config.reliance.tokens)}
            ),
            "metrics": config.metrics.model_copy(
                update={k: embedding_path(getattr(config.metrics, k), base) for k in ("embedding", "perceptual")}
            ),
            **{
                table: tuple(_with_place(fix(one, ("checkpoint", "factory")), base) for one in getattr(config, table))
                for table in ("classifiers", "judge_checkpoints")
            },
        }
    )


def allowing_code(config: AuditConfig) -> AuditConfig:
    """Return `config` with `allow_code` for every classifier and judge that comes as a file."""

    def allowing(one: ClassifierConfig) -> ClassifierConfig:
        idle = one.file is None or container_of(one.file) is not None
        return one if idle else one.model_copy(update={"allow_code": True})

    tables = {table: tuple(map(allowing, getattr(config, table))) for table in ("classifiers", "judge_checkpoints")}
    return config.model_copy(update=tables)


def recorded(config: AuditConfig, base: Path) -> dict[str, Any]:
    """Plain JSON of `config` for the results: paths relative to the folder `base`, so that no machine's own show."""

    def relative(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: relative(v) for k, v in value.items()}
        if isinstance(value, list):
            return [relative(v) for v in value]
        if isinstance(value, str) and Path(value).is_absolute():
            return Path(os.path.relpath(value, base)).as_posix()
        if isinstance(value, str) and (contained := container_of(value)) is not None:
            return f"{contained[0]}:{relative(contained[1])}"
        return value

    return dict(relative(config.model_dump(mode="json")))
