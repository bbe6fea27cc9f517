"""Attacks, whether they may be believed, distances, corruptions and the vulnerability map."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from audit.config.amounts import Eps, EpsL2
from audit.config.section import Section, switched

LowPrecision = Literal["bfloat16", "float16"]
Precision = Literal["float32", LowPrecision]


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
