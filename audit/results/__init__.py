"""The typed content of `results.json`, the single source of truth that report and gate read."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from audit.errors import ResultsError
from audit.results.frames import frames

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = "1.1"
"""Major number changes when a reader of the old file would misread the new one."""

MAIN_REGION = "region"
"""Name of the region that carries the class's meaning; every other region is something an edit should not need."""
UNKNOWN_LABEL = -1
"""What stands in multi-hot labels, beside 1 and 0, where it is not known whether an image has a label."""
COMPONENTS = ("validity", "realism", "sparsity", "localisation", "transfer")
"""The index's parts, in the order in which they are shown."""
Norm = Literal["Linf", "L2"]
NORMS: tuple[Norm, ...] = ("Linf", "L2")
PGD, ENSEMBLE, TRANSFER = "pgd", "ensemble", "transfer"
ATTACK_TITLES = {
    PGD: "PGD",
    ENSEMBLE: "Ensemble",
    "apgd-ce": "APGD, cross-entropy",
    "apgd-dlr": "APGD, logit ratio",
    "apgd-t": "APGD, targeted",
    "fab-t": "FAB, targeted",
    "square": "Square",
    "rays": "RayS, decisions only",
    "rotation-translation": "Rotation and translation",
    TRANSFER: "Transfer",
}
"""Headings of our own attacks, by the name in the configuration; any other is called by its name."""
EDIT_FULL_SCALE = 0.25
"""Change of a pixel that the 8 bits of an edit map end at."""
MEANINGFULNESS = ("index", "rank", "components", "counterfactuals", "methods", "left_out_by_inversion")
"""First parts of the paths of a model's numbers that rest on the generator."""


class Row(BaseModel):
    """A part of the results; unknown fields are errors so that a typo cannot hide a number."""

    model_config = ConfigDict(extra="forbid")


class Interval(Row):
    """A number with its interval; `level` is the coverage, `n` what it was measured on."""

    value: float | None = Field(description="None: not measured or not defined")
    low: float | None = None
    high: float | None = None
    level: float = 0.95
    n: int = 0


class Embedding(Row):
    """The network a distribution metric or perceptual distance rests on."""

    name: str
    weights_sha256: str


class Notice(Row):
    """Something to know before a number is believed; the audit went on as it was configured."""

    subject: str = Field(description="'data', 'generator', 'audit', or the name of a model")
    kind: str = Field(description="stable name for programs, for instance 'one-class'")
    text: str = Field(description="what was seen, what it means and how to mend it")


Origin = Literal["configuration", "checkpoint", "container", "timm", "library", "data", "default"]
"""Who said how a model wants its images: `container` is a folder or file that describes itself, `library` what another
library than timm gives by default for the architecture; default: nobody did."""


class LeftOut(Row):
    """What lies at data.path and is not part of the data, by the reason."""

    reason: str
    n: int
    examples: list[str] = Field(description="the first few, relative to data.path")


class Copies(Row):
    """Audited images whose content stands a second time, in one split."""

    split: str = Field(description="split that holds the copies; the audited split itself: copies among its images")
    n: int = Field(description="audited images concerned; within the audited split those beyond the first of each kind")
    other_label: int = Field(description="audited images with an equal image of another label in that split")
    examples: list[tuple[str, str]] = Field(description="ids: the audited image and its copy")


class PixelRange(Row):
    """What the numbers in the sources were like, before channels and size are converted."""

    n: int = Field(description="images looked at")
    largest: float = Field(description="largest number stored, before the division by white")
    brightest: float = Field(description="largest number as share of white, at most 1")
    constant: int = Field(description="images of one value only")
    saturated: float = Field(description="share of the pixels that are white or above")
    clipped: float = Field(description="share of the pixels above white, which were set to white")
    transparent: int = Field(description="images that are not opaque everywhere, laid over black")


class DataRead(Row):
    """How the images were read, what was left out, and which stand twice."""

    audit_split: str
    calibration_split: str | None = Field(description="None: there is none, or none is needed")
    splits: dict[str, dict[str, int]] = Field(description="images by split and class")
    origin: str | None = Field(default=None, description="package and version that read the data; None: this one")
    white: float | None = Field(description="as configured; None: the largest number that each depth can hold, or 1")
    kinds: dict[str, int] = Field(default_factory=dict, description="depth and colour of the sources, number of images")
    smallest: tuple[int, int] | None = Field(default=None, description="height and width before resizing")
    largest: tuple[int, int] | None = None
    pixels: PixelRange | None = None
    left_out: list[LeftOut] = Field(default_factory=list)
    copies: list[Copies] = Field(default_factory=list)
    compared: int = Field(default=0, description="images whose contents were compared")
    compared_by: Literal["pixels", "bytes"] | None = Field(
        default=None, description="pixels: as the models see them; bytes: of the files, for large sets"
    )


class ModelInput(Row):
    """How a model was given its images and which weights it has; `origins` says where each setting came from."""

    size: tuple[int, int] = Field(description="height and width that the network receives")
    channels: int
    mean: list[float] = Field(description="subtracted from pixels in [0, 1], per channel; 0: no normalisation")
    std: list[float]
    classes: list[str] = Field(description="classes in the order of the network's own outputs")
    weights: str = Field(description="file, and the entry of the file that was read")
    origins: dict[str, Origin] = Field(description="by the name of a field above; default: nobody gave any")
    answer: str = Field("logits", description="what is read of what the network returns, and what is made of it")
    features: str | None = Field(None, description="where the features that counterfactuals go by come from")


class Reading(Row):
    """Accuracy on a few labelled images if a model were given its images, or its outputs were named, in another way."""

    name: str = Field(description="what would be otherwise; 'as audited' for the assumed reading")
    assumed: bool = Field(description="True: the reading that every other number of the audit rests on")
    accuracy: Interval
    p_value: float | None = Field(
        default=None, description="exact McNemar test against the assumed one, corrected for all readings tried"
    )
    better: bool = Field(
        default=False,
        description="right more often by at least 0.05, in the mean over classes, too, and by more than chance",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="keys and values of the classifier's table that would make it the assumed one"
    )
    beyond_settings: list[str] = Field(default_factory=list, description="what it needs that no key gives")
    not_tried: str | None = Field(default=None, description="why there is no accuracy")


class LoadingCheck(Row):
    """One line of a model's certificate of loading: is what is audited the network that was meant?"""

    name: str = Field(description="stable name for programs, for instance 'gradient'")
    passed: bool | None = Field(description="None: not tried, or nothing to tell it by; `finding` says why")
    value: float | None = Field(default=None, description="what was measured; None: nothing is")
    limit: float | None = Field(default=None, description="bound that `value` may not exceed")
    finding: str = Field(description="one sentence: what was seen, and what it means")


class Failure(Row):
    """Why a model's audit ended early; what had been measured before stays."""

    stage: str
    why: str


class ClassScores(Row):
    """What is answered to the images of each class."""

    confusion: list[list[int]] | None = Field(
        default=None, description="images by true class (rows) and answer (columns), in the order of the classes"
    )
    precision: dict[str, float | None] = Field(
        default_factory=dict,
        description="per class, the share of its answers that are right; None where it is never answered",
    )
    f1: dict[str, float | None] = Field(
        default_factory=dict,
        description="per class, the harmonic mean of precision and recall; None where it has neither image nor answer",
    )
    macro_f1: float | None = Field(default=None, description="mean of `f1` over the classes that have it")


class ConfidenceBin(Row):
    """The images of which a model is about equally sure; confidence is the probability of the answered class."""

    low: float = Field(description="lower end of the confidence, exclusive")
    high: float = Field(description="upper end, inclusive")
    confidence: float = Field(description="mean over the images")
    accuracy: Interval


class Clean(ClassScores):
    """Performance on unmodified images of the audit split."""

    accuracy: Interval
    recall: dict[str, float | None] = Field(description="per class; None where the class has no image")
    ece: float | None = Field(description="expected calibration error, 15 equal-width bins; None: not measured")
    n: int
    confidence_bins: list[ConfidenceBin] = Field(
        default_factory=list, description="the bins of `ece` that hold an image; empty: the file is older"
    )
    misclassified: list[str] | None = Field(
        default=None, description="ids of the images that are answered wrongly; None: the file is older"
    )


class CascadeStage(Row):
    """One attack of the cascade: it meets what the stages before it left standing."""

    attack: str = Field(
        description="name as in the configuration; before: misclassified as it is, or fooled at a smaller eps"
    )
    attacked: int = Field(description="images still classified correctly before this stage")
    standing: int = Field(description="images still classified correctly after it")


class Attack(ClassScores):
    """Robust accuracy under one attack, and what is answered to its images."""

    robust_accuracy: Interval
    eps: float = Field(description="radius in pixel units")
    norm: Literal["Linf", "L2"] = "Linf"
    steps: int | None = Field(description="None: the attack has none, or its own (robustness.options)")
    restarts: int | None
    stages: list[CascadeStage] = Field(default_factory=list, description="of the ensemble, in their order")
    recall: dict[str, Interval] = Field(
        default_factory=dict, description="robust accuracy of each class; None where none of its images was attacked"
    )
    untrusted: list[str] = Field(
        default_factory=list, description="why the number must not be believed, a sentence each; empty: no check failed"
    )
    unchecked: list[str] = Field(
        default_factory=list,
        description="checks of this number that were not made, a sentence each; empty: all were, or the file is older",
    )
    without_gradient: int | None = Field(
        default=None,
        description="images that stand though no gradient attack had a gradient other than zero; None: not recorded",
    )
    outcomes: dict[str, str | None] = Field(
        default_factory=dict,
        description="by image id, the attack that fooled it; before: misclassified as it is; smaller: fooled at a "
        "smaller eps of the same attack; None: stands",
    )
    source: str | None = Field(
        default=None, description="package and version that the attack comes from; None: this package"
    )
    extent: str | None = Field(
        default=None, description="what bounds an attack that no norm bounds: `eps` is 1 then, which is no bound"
    )


class Transferred(Row):
    """What the images that an attack made for another model do to this one."""

    source: str = Field(description="name of the model that was attacked")
    metric: str = Field(description="dotted path of the attack there, for instance 'robust.pgd.8/255'")
    accuracy: Interval = Field(description="share of the images that this model decides rightly, as they are and so")
    fooled: Interval = Field(
        description="share that fool this model of those that fool the other one and that this one decides rightly as "
        "they are"
    )


class AttackTable(NamedTuple):
    """Everything that one attack measured in one norm: `path` in the results, name, and numbers by radius."""

    path: str
    attack: str
    norm: Norm
    radii: dict[str, Attack]

    @property
    def title(self) -> str:
        """Heading of the attack."""
        title = ATTACK_TITLES.get(self.attack, self.attack)
        return title if self.norm == "Linf" else f"{title}, L2"


def attack_path(attack: str, norm: Norm) -> str:
    """Return the path in the results of what an attack measures in `norm`."""
    own = attack in (PGD, ENSEMBLE)
    return f"robust.{'' if own else 'attacks.'}{attack}{'' if norm == 'Linf' else '_l2'}"


class TrustCheck(Row):
    """One check of whether robust accuracy may be believed."""

    name: str
    passed: bool | None = Field(description="None: it could not be made; `finding` says why")
    value: float | None = Field(description="what was measured")
    limit: float | None = Field(description="bound that `value` may not exceed")
    n: int = Field(description="images it was made on")
    eps: float | None = Field(default=None, description="radius it was made at, in pixel units; None: at none")
    norm: Literal["Linf", "L2"] = Field(default="Linf", description="norm of `eps`")
    finding: str = Field(description="one sentence: what was seen, and what it means")
    attacks: tuple[str, ...] = Field(
        (PGD, ENSEMBLE, "distance"),
        description="attacks whose numbers a failure marks as untrusted; distance: minimal distances",
    )


class MinimalDistance(Row):
    """Smallest perturbation that fools the model, in pixel units of `norm`."""

    norm: Literal["Linf", "L2"]
    median: Interval = Field(description="None: more than half of the images stand at `largest`")
    largest: float = Field(description="radius beyond which was not searched")
    attack: str | None = Field(
        default=None, description="attack of robustness.attacks that found them; None: the search by bisection"
    )
    n: int
    standing: int = Field(description="images that no attack within `largest` fooled")
    distances_by_image: dict[str, float | None] = Field(
        description="by image id; 0: misclassified as it is; None: stands"
    )
    untrusted: list[str] = Field(default_factory=list, description="as of an attack")
    unchecked: list[str] = Field(default_factory=list, description="as of an attack")

    @property
    def path(self) -> str:
        """Path in the results: the norm names the row of the search, attack and norm any other."""
        return f"robust.distances.{self.norm if self.attack is None else f'{self.attack}/{self.norm}'}"


class AdversarialExample(Row):
    """One image that a model decides rightly until it is attacked; the pictures are rounded to 8 bits."""

    id: str
    label: str
    predicted: str = Field(description="class answered to the attacked image")
    metric: str = Field(description="dotted path of the attack, for instance 'robust.pgd.8/255'")
    image: str = Field(description="path relative to results.json")
    adversarial_image: str
    perturbation_image: str = Field(description="perturbation times `scale` around middle grey")
    scale: float
    distance: float | None = Field(
        default=None, description="size of the perturbation, of an image shown because it is among the smallest"
    )


class Corruption(Row):
    """Accuracy under one corruption."""

    name: str
    accuracy: dict[int, Interval] = Field(description="by severity, 1 to 5")
    mean: float = Field(description="over the severities")


class Corruptions(Row):
    """Accuracy under natural corruptions."""

    mean_accuracy: Interval = Field(description="mean over corruptions and severities; bootstrap over images")
    corruptions: list[Corruption]
    n: int
    clean_accuracy: Interval | None = Field(default=None, description="on the same images, not corrupted")
    constants: Literal["imagenet-c", "cifar-c"] = Field(
        default="imagenet-c", description="published list that the severities are taken from"
    )


class VulnerabilityShare(Row):
    """What is left of an attack when only a share of its pixels is kept."""

    share: float
    accuracy: Interval
    random_accuracy: float = Field(description="accuracy when as many pixels are kept at random")
    l2: float = Field(description="mean Euclidean size of what is kept")


class VulnerabilityExample(Row):
    """One image and where an attack on it has to be."""

    id: str
    image: str = Field(description="path relative to results.json")
    map_image: str


class Vulnerability(Row):
    """Which pixels an attack really needs (Pixel Vulnerability Adversary Refinement)."""

    eps: float
    n: int
    attack_accuracy: float = Field(description="accuracy under the whole attack")
    shares: list[VulnerabilityShare]
    smallest_share: float | None = Field(description="smallest share that keeps the attack effective; None: none does")
    l2_saved: float | None = Field(description="share of the attack's Euclidean size saved at `smallest_share`")
    regions: list["RegionShare"] = Field(default_factory=list, description="where the map's mass lies")
    map_image: str | None = Field(None, description="mean map over the images; path relative to results.json")
    examples: list[VulnerabilityExample] = Field(default_factory=list)


class Robust(Row):
    """Robustness of one model; keys of the attacks are radii as written in the configuration."""

    pgd: dict[str, Attack] = Field(default_factory=dict)
    pgd_l2: dict[str, Attack] = Field(default_factory=dict)
    ensemble: dict[str, Attack] = Field(default_factory=dict)
    ensemble_l2: dict[str, Attack] = Field(default_factory=dict)
    attacks: dict[str, dict[str, Attack]] = Field(
        default_factory=dict, description="other attacks of robustness.attacks, by name (in L2 with '_l2' behind it)"
    )
    transfers: list[Transferred] = Field(
        default_factory=list,
        description="what the images made for each of the other models do; 'transfer': all together",
    )
    trusted: bool | None = Field(None, description="False: a check failed; None: not all checks were made")
    checks: list[TrustCheck] = Field(default_factory=list)
    distances: list[MinimalDistance] = Field(default_factory=list)
    corruptions: Corruptions | None = None
    shift: Clean | None = Field(None, description="performance on a second set of the same classes")
    examples: list[AdversarialExample] = Field(
        default_factory=list, description="the first fooled images of the attacked order, then the most fragile ones"
    )
    vulnerability: Vulnerability | None = None

    def table(self, attack: str, norm: Norm) -> dict[str, Attack]:
        """Return the table that holds what `attack` measures in `norm`, by radius: an empty one if it is new."""
        name = attack_path(attack, norm).removeprefix("robust.")
        if name.startswith("attacks."):
            return self.attacks.setdefault(name.removeprefix("attacks."), {})
        found: dict[str, Attack] = getattr(self, name)
        return found

    def tables(self) -> list[AttackTable]:
        """Return what every attack measured, PGD and the ensemble first; those that were not made are left out."""
        kinds = [(attack, norm) for norm in NORMS for attack in (PGD, ENSEMBLE)]
        for name, radii in self.attacks.items():
            norm = next((one.norm for one in radii.values()), NORMS[0])
            kinds.append((name if norm == "Linf" else name.removesuffix("_l2"), norm))
        made = [AttackTable(attack_path(*kind), *kind, self.table(*kind)) for kind in kinds]
        return [table for table in made if table.radii]


InterventionKind = Literal["token", "acquisition", "geometry", "sharpness"]


class Reaction(Row):
    """How one model's decisions react to an intervention at one strength, in the variant that changes most of them.

    Intervals of shares hold for all variants, and for all classes, at once (Bonferroni).
    """

    strength: float
    variant: str = Field(description="place or direction; empty: there is only one")
    variants: dict[str, float] = Field(description="share of the decisions that change, for every variant")
    changed: Interval = Field(description="share of the decisions that change")
    shift: Interval = Field(description="mean total variation distance between the probabilities before and after")
    towards: str | None = Field(description="class that most of the changed decisions go to; None: none changes")
    rise: Interval = Field(description="mean change of the probability of that class")
    of_class: str | None = Field(
        default=None, description="class whose decisions change most, of those with 10 or more; None: there is none"
    )
    class_towards: str | None = Field(
        default=None, description="class that most of its changed decisions go to; None: none changes, or older file"
    )
    class_changed: Interval = Field(
        default=Interval(value=None), description="share of the decisions for that class that change"
    )
    class_fall: Interval = Field(
        default=Interval(value=None), description="mean fall of the probability of that class where it was decided for"
    )

    @property
    def hit(self) -> Interval:
        """What interventions are ranked by: the share that changes, of the class that is hit most if there is one."""
        return self.changed if self.of_class is None else self.class_changed

    @property
    def hit_towards(self) -> str | None:
        """The class that most of the decisions behind `hit` go to, as far as it is known."""
        return self.towards if self.of_class is None else self.class_towards

    @property
    def hit_order(self) -> tuple[float, float]:
        """What sorts reactions: the lower end of `hit`, which few images do not raise, and then `hit` itself."""
        return self.hit.low or 0.0, self.hit.value or 0.0


class ChangedImage(Row):
    """One image whose decision an intervention changes."""

    id: str
    before: str = Field(description="class answered to the image as it is")
    after: str
    image: str = Field(description="path relative to results.json")
    changed_image: str


class Intervention(Row):
    """A change of the images that has no part in their class, and what it does to one model's decisions."""

    name: str
    kind: InterventionKind
    unit: str = Field(description="words that follow a strength")
    source: str | None = Field(default=None, description="package and version that it comes from; None: this package")
    reactions: list[Reaction] = Field(description="by rising strength")
    example: ChangedImage | None = Field(default=None, description="of the interventions that hit most, at the worst")

    @property
    def worst(self) -> Reaction:
        """The reaction at the strength that hits most."""
        return max(self.reactions, key=lambda one: one.hit_order)


class Treated(Row):
    """What becomes of one model's answers when a region, or all but the region, is taken away."""

    region: str
    part: Literal["region", "rest"] = Field(description="what is taken away: the region, or all but the region")
    treatment: str = Field(
        description="blurred; in-painted from what lies around; or exchanged with an image of another class"
    )
    n: int = Field(description="images with a mask of the region")
    accuracy: Interval
    clean_accuracy: Interval = Field(description="on the same images as they are")
    stay_right: Interval = Field(description="share still right of those that were right")
    fall: Interval = Field(description="mean fall of the probability of the image's own class")
    follow: Interval = Field(description="share that becomes the class of the image exchanged with; else None")


class Group(Row):
    """Accuracy on the images of one group: a value of a column of metadata, or a cluster of images that look alike."""

    column: str
    value: str
    accuracy: Interval
    gap: Interval = Field(
        description="accuracy less that of all other images, in the group's mix of classes; images of classes that are "
        "only inside or only outside of it are not compared; the interval holds for all groups at once"
    )
    p_value: float = Field(description="of no gap below zero, permutation test corrected for all groups")


class Reliance(Row):
    """What one model decides by, as far as changes of its images, and groups of them, tell."""

    n: int = Field(description="images that were changed")
    interventions: list[Intervention] = Field(description="those that change most decisions first")
    regions: list[Treated] = Field(default_factory=list)
    groups: list[Group] = Field(default_factory=list, description="the widest gap below the others first")


class Components(Row):
    """The index's parts in [0, 1]; None where one could not be computed (the reason is in `not_computed`)."""

    validity: float | None = None
    realism: float | None = None
    sparsity: float | None = None
    localisation: float | None = None
    transfer: float | None = None


class Distribution(Row):
    """A distance between the counterfactuals and real images of the target class, in a named embedding."""

    metric: Literal["fid", "cmmd", "mmd"]
    estimator: Literal["biased", "unbiased"] = "biased"
    value: float
    inversion: float = Field(description="the same distance for the unedited inversions")
    floor: float = Field(description="the same distance between two halves of the real target images")
    n: int
    n_real: int
    target: str
    embedding: Embedding


class Perceptual(Row):
    """Mean perceptual distance between counterfactual and inversion."""

    value: float
    embedding: Embedding


class Judge(Row):
    """An independent predictor that says whether a counterfactual belongs to the target class."""

    name: str
    accuracy: float = Field(description="on real images of the audit split")
    agreement: float | None = Field(description="share of the flips it agrees with")
    rejects_inversion: float | None = Field(description="share of unedited inversions it does not call the target")
    rejects_adversarial: float | None = Field(
        default=None, description="share of pixel-space adversarial examples towards the target it rejects"
    )
    power: float | None = Field(
        default=None,
        description="its weight: accuracy plus what it rejects, less 1, at least 0; None: the file is older",
    )
    weights_sha256: str | None = Field(default=None, description="of a classifier that judges and is not audited")


class Axioms(Row):
    """How far the counterfactuals keep to two axioms of counterfactuals (Monteiro et al. 2023)."""

    effectiveness: float | None = Field(
        description="share of the counterfactuals that judges call the target class, each weighted by its power"
    )
    reversibility: Interval | None = Field(
        description="distance from the start after there and back, in units of the edit: 0 ends at the start, 1 as far "
        "away as the edit went; None: not measured"
    )
    returned: float | None = Field(description="share of the ways back that the model calls the source class again")


class RegionShare(Row):
    """Where the edit's mass lies, for one named region."""

    region: str
    n: int = Field(description="counterfactuals with a non-empty mask and a non-zero edit")
    skipped: int
    mass: float | None = Field(description="mean share of the edit map inside the region")
    mass_interval: tuple[float, float] | None = Field(default=None, description="of the mean over images, 95 %")
    area: float | None = Field(description="mean share of the image that the region covers")
    lift: float | None = Field(description="mass over area share")
    p_value: float | None = Field(default=None, description="permutation test of lift > 1 by random torus shifts")
    rank_accuracy: float | None = None
    pointing: float | None = None
    iou: float | None = None
    auc: float | None = None
    alone: Interval | None = Field(
        default=None,
        description="share of the flips that stay where only the part of the edit inside the region is made",
    )
    undone: Interval | None = Field(
        default=None, description="share of the flips that stay where the part of the edit inside the region is undone"
    )


class ConfounderShare(Row):
    """How much of what is seen of the edits (above 4/255) lies in the regions named as confounders, all together."""

    regions: list[str]
    n: int = Field(description="flipped images that show the confounder and a visible edit")
    mass: float = Field(description="mean share of the visible edit in the confounder")
    main_mass: float | None = Field(description="the same in the region that carries the class; None: there is none")
    excess: float = Field(description="mean share beyond what the area gives by chance, (mass - area) / (1 - area)")
    ahead: Interval = Field(description="the excess less that in the class's region, which counts as 0 where negative")
    vetoes: bool = Field(description="the interval of `ahead` is above 0 and the excess at least 0.1")


class AnyLabel(Row):
    """What one attack does to all labels of an image, each of which it was aimed at in turn."""

    right: Interval = Field(description="share of images on which every known label is decided rightly under attack")
    falls: Interval = Field(description="share of images on which some label falls that is decided rightly as it is")


class JointAttack(Row):
    """What one perturbation does that is aimed at all labels of an image together."""

    eps: float = Field(description="radius in pixel units")
    norm: Norm = "Linf"
    steps: int
    weights: dict[str, float] = Field(description="by label, what its fall counts")
    kept: Interval = Field(description="weighted share of an image's labels that are decided rightly, mean over images")
    before: float = Field(description="the same without an attack")
    by_label: dict[str, Interval] = Field(description="share of the images decided rightly under it, by label")


class LabelSummary(Row):
    """What was measured of all labels of a multi-label model together; macro: the mean over labels."""

    auroc: Interval = Field(description="macro")
    average_precision: Interval = Field(description="macro")
    f1: Interval = Field(description="macro")
    accuracy: Interval = Field(description="macro")
    ece: float | None = Field(description="macro")
    brier: float | None = Field(description="macro")
    exact: Interval = Field(description="share of images on which every known label is decided rightly")
    any_label: dict[str, AnyLabel] = Field(default_factory=dict, description="by attack and radius: 'pgd.8/255'")
    joint: dict[str, JointAttack] = Field(default_factory=dict, description="by norm and radius: '8/255', 'l2.0.5'")


class LabelCounts(Row):
    """How often labels occur in the audited images, alone and together."""

    n: int
    positives: dict[str, int]
    unknown: dict[str, int] = Field(description="images of which it is not known")
    together: list[list[int]] = Field(description="images that have both labels, in the order of the labels")


class AttributionMap(Row):
    """The attribution map of one image."""

    id: str
    label: str
    predicted: str = Field(description="class that the model answers, which the map explains")
    image: str = Field(description="path relative to results.json")
    map_image: str = Field(description="the map over its largest value")


class Attribution(Row):
    """What one attribution method says of a model's decisions, as a baseline beside the edits."""

    method: str
    n: int
    regions: list[RegionShare] = Field(
        default_factory=list, description="where the maps' mass lies, scored as that of the edits"
    )
    similarity: Interval = Field(
        description="rank correlation of the maps with those of shuffled weights, mean over images: near 1 they do not "
        "depend on what the model has learnt; None: no map is defined with shuffled weights"
    )
    examples: list[AttributionMap] = Field(default_factory=list, description="of the first few images")


class MovedLabel(Row):
    """What edits towards another label do to this one, against the inversion."""

    change: Interval = Field(description="mean absolute change of its probability")
    flips: Interval = Field(description="share of the edits that change the decision about it")


class OffTarget(Row):
    """What edits towards one label do to the other labels of a multi-label model, against the inversion."""

    change: Interval = Field(description="mean absolute change of the other labels' probabilities")
    flips: Interval = Field(description="mean share of the other labels about which the decision changes")
    valid: Interval = Field(
        description="share of the edits that flip their label and change the decision about no other one"
    )
    labels: dict[str, MovedLabel] = Field(description="by the name of the other label")


class Counterfactuals(Row):
    """Scores of one model's counterfactuals over its query images, which all models share that are not unpaired.

    Distances to real images, transfer and realism rest on the images that the model classifies correctly: the others
    belong to their target class as they are.
    """

    n: int
    flip_ratio: Interval
    corrected: Interval | None = Field(
        default=None,
        description="share that flip of those that the model misclassifies as they are; None: there are none",
    )
    reached: float = Field(description="share at the operating point: as confident as on a typical real target image")
    explained: Interval | None = Field(
        default=None, description="share that flip without spoiling their image; None: the file is older"
    )
    off_target: OffTarget | None = Field(default=None, description="of a label; None: there is no other label")
    unexplained: str | None = Field(
        default=None, description="why no edit within the generator's range explains the model; None: most of them do"
    )
    method: str | None = Field(default=None, description="name of the counterfactual method; None: the file is older")
    method_package: str | None = Field(
        default=None, description="package and version that give the method; None: it is built in"
    )
    feature_target_flips: float | None = Field(
        description="share whose replaced features x' the head itself assigns to c'; None: the method replaces none"
    )
    reach: float | None = Field(
        default=None,
        description="how many times as far as x' the features were carried, mean; None: none is carried further",
    )
    carried_target_flips: float | None = Field(
        default=None, description="as feature_target_flips, of the features carried as far as each image's `reach`"
    )
    operating_point: dict[str, float] = Field(description="confidence asked for, by target class")
    operating_point_cap: float | None = Field(
        default=None, description="most that is asked for, however sure the model is; None: the file is older"
    )
    converged: float | None = Field(
        default=None,
        description="share of the edits that had stopped to shrink when the search ended; None: they were not shrunk",
    )
    confidence: Interval
    l1: Interval = Field(description="mean absolute pixel change against the inversion, images in [0, 1]")
    changed_share: float = Field(description="share of pixels changed by more than 4/255")
    lpips: Perceptual | None = None
    perceptual: Perceptual | None = None
    fid: list[Distribution] = Field(default_factory=list)
    cmmd: list[Distribution] = Field(default_factory=list)
    mmd: list[Distribution] = Field(default_factory=list)
    regions: list[RegionShare] = Field(default_factory=list)
    confounder: ConfounderShare | None = Field(default=None, description="None: no region is named as a confounder")
    judges: list[Judge] = Field(default_factory=list)
    copies: list[Judge] = Field(
        default_factory=list, description="independently trained copies of the model; they have no part in transfer"
    )
    nafr: Interval | None = Field(
        default=None,
        description="non-adversarial flip rate: share of the flips that the copies share, all copies together; None: "
        "there is no copy",
    )
    axioms: Axioms | None = Field(default=None, description="None: the file is older")
    untrusted: list[str] = Field(
        default_factory=list, description="why they, and the index that rests on them, must not be believed"
    )


class Aligned(Row):
    """The edit that the search's first phase ended with, before it was made smaller."""

    l1: float
    confidence: float
    steps: int = Field(description="last iterate of the first phase")


class QueryRow(Row):
    """One counterfactual: one model, one query image, one target class."""

    query: str = Field(description="id of the query image")
    source: str = Field(description="class that the model gives to the image as it is")
    target: str
    wrong: bool = Field(
        default=False, description="the model misclassifies the image as it is; its target is its own class"
    )
    flipped: bool
    reached: bool
    step: int = Field(description="iterate chosen as the counterfactual")
    flip_step: int | None = Field(description="first iterate classified as the target; None if never")
    confidence: float
    l1: float
    steps: int | None = Field(default=None, description="last iterate of the search; None: the file is older")
    converged: bool | None = Field(
        default=None,
        description="whether the edit had stopped to shrink when the search ended; None: it was not shrunk",
    )
    aligned: Aligned | None = Field(default=None, description="the edit before it was shrunk; None: it was not shrunk")
    ruined: bool = Field(
        default=False,
        description="the edit is as large as exchanging the image for the nearest real one of the target class, and "
        "brings it no nearer to any of those",
    )
    off_target: float | None = Field(
        default=None, description="of a label: mean absolute change of the other labels' probabilities"
    )
    moved: list[str] = Field(default_factory=list, description="other labels about which the decision changes")
    push: float | None = Field(
        default=None, description="multiplier of the operating point's constraint that led to the (aligned) edit"
    )
    reach: float | None = Field(default=None, description="how many times as far as x' the features were carried")
    feature_target_flips: bool | None = Field(
        default=None, description="whether the head itself assigns the replaced features x' to the target class"
    )
    carried_target_flips: bool | None = Field(default=None, description="the same of the features carried so far")
    perceptual: float | None = None
    mass: dict[str, float | None] = Field(default_factory=dict, description="share of the edit in each named region")
    area: dict[str, float | None] = Field(default_factory=dict)
    agreed_by: dict[str, bool] = Field(default_factory=dict)
    trace: list[float] = Field(default_factory=list, description="probability of the target class at each step")
    counterfactual_image: str | None = Field(None, description="path relative to results.json")
    semifactual_image: str | None = None
    edit_image: str | None = Field(None, description="|x_cf - x_inv|, mean over channels, 8-bit, full scale 0.25")


class NotComputed(Row):
    """Something a reader may look for that is not there, with the reason."""

    what: str
    why: str
    paths: list[str] = Field(
        default_factory=list,
        description="dotted paths in a model's result, such as 'counterfactuals.lpips': why a number at or below "
        "them is missing; empty: no single number is, or the file is older",
    )


class ComparedMethod(Row):
    """What another method makes of the same query images: same inversions, targets and metrics, but no index."""

    components: Components = Field(default_factory=Components)
    counterfactuals: Counterfactuals | None = Field(default=None, description="None: the method failed")
    queries: list[QueryRow] = Field(default_factory=list, description="the first few of the query images")
    failed: Failure | None = Field(default=None, description="why there are no counterfactuals")
    not_computed: list[NotComputed] = Field(default_factory=list)


class Measurements(Row):
    """What is measured of a classifier: of one of classes as a whole, of one of labels label by label."""

    rank: int | None = Field(
        default=None,
        description="1 + the models in higher tiers; a tier ends where all models so far are surely above all that "
        "follow; None: no index",
    )
    index: float | None = Field(default=None, description="meaningfulness index, 0 to 100")
    index_interval: tuple[float, float] | None = None
    veto: str | None = Field(
        default=None, description="why the model is not meaningful whatever its components are: its index is 0"
    )
    components: Components = Field(default_factory=Components)
    component_intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    failed: Failure | None = Field(default=None, description="None: every stage was completed")
    unpaired: bool = Field(
        default=False,
        description="explained on images of its own, as too few common ones would have been left for all; it is "
        "compared without pairing",
    )
    unreliable: list[str] = Field(
        default_factory=list,
        description="why nothing measured of this model may be believed, clean accuracy included; a sentence each",
    )
    clean: Clean
    robust: Robust = Field(default_factory=Robust)
    reliance: Reliance | None = Field(default=None, description="None: not measured, or the file is older")
    counterfactuals: Counterfactuals | None = None
    attributions: list[Attribution] = Field(default_factory=list)
    queries: list[QueryRow] = Field(default_factory=list)
    methods: dict[str, ComparedMethod] = Field(
        default_factory=dict, description="by their names the methods that the audited one is compared with"
    )
    not_computed: list[NotComputed] = Field(default_factory=list)
    left_out: dict[str, int] = Field(
        default_factory=dict, description="candidate query images this model misclassifies, by class"
    )
    left_out_by_inversion: int = Field(
        default=0, description="candidate query images whose unedited inversion this model decides otherwise"
    )


class LabelQuality(Row):
    """How well one label of a multi-label model is told."""

    n: int = Field(description="audited images of which it is known whether they have the label")
    positives: int = Field(description="of these, images that have it")
    threshold: float = Field(description="probability above which the model says that an image has the label")
    auroc: Interval = Field(description="area under the ROC curve; None: all images have it, or none has")
    average_precision: Interval
    f1: Interval = Field(description="at the threshold")
    ece: float | None = Field(description="expected calibration error of the label's probability, 15 bins")
    brier: float | None = Field(description="mean squared difference between probability and truth")


# Fields stand in the order of the bases from the last one on: what something is, before what was measured of it.
class LabelResult(Measurements, LabelQuality):
    """What was measured of one label of a multi-label model: whether an image has it is a question of two classes.

    Images of which it is not known are left out. All but its scores is as of a classifier of the two classes "no LABEL"
    and "LABEL".
    """


class Identity(Row):
    """Which classifier it is, and how it was loaded."""

    name: str
    role: Literal["baseline"] | None = Field(default=None, description="'baseline': a gate compares the others with it")
    weights_sha256: str | None = Field(description="None: the weights could not be read")
    source: str = Field(description="architecture or file the classifier was loaded from")
    input: ModelInput | None = None
    sanity: list[Reading] = Field(
        default_factory=list, description="the assumed and the other usual readings of its input, assumed first"
    )
    certificate: list[LoadingCheck] = Field(
        default_factory=list, description="checks of how it was loaded; empty: the file is older"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        default="float32", description="of gradients of PGD, and of answers to corrupted and changed images"
    )


class ModelResult(Measurements, Identity):
    """Everything measured for one classifier."""

    labels: dict[str, LabelResult] = Field(
        default_factory=dict, description="of a multi-label model; its own measurements are empty then"
    )
    label_summary: LabelSummary | None = Field(default=None, description="of a multi-label model")

    def label_of(self, metric: str) -> str | None:
        """Return the label that the dotted path `metric` names; None: it names none."""
        named = [name for name in self.labels if metric.startswith(f"labels.{name}.")]
        return max(named, key=len, default=None)

    def of_label(self, name: str) -> "ModelResult":
        """Return the model as a classifier of the two classes "no LABEL" and "LABEL"; itself without that label."""
        if name not in self.labels:
            return self
        label = self.labels[name]
        return self.model_copy(update={key: getattr(label, key) for key in Measurements.model_fields})


class Comparison(Row):
    """Bootstrap over query images: the probability that model `a` has the higher index."""

    a: str
    b: str
    probability: float
    images_needed: int | None = Field(
        default=None,
        description="query images on which the two would be told apart if they differ by as much as on these; None: "
        "they are told apart, or do not differ, or the file is older",
    )
    paired: bool = Field(default=True, description="both are explained on the same images, which are drawn together")
    difference: Interval | None = Field(default=None, description="index of `a` less that of `b`; None: older file")
    components: dict[str, Interval] = Field(default_factory=dict, description="the same of the components both have")


class Difference(Row):
    """Paired difference of two models on the same images: `a` minus `b`."""

    a: str
    b: str
    metric: str = Field(description="dotted path of the number, for instance 'robust.pgd.8/255'")
    difference: Interval


class Query(Row):
    """An image that models are explained on; `queries` of a model says which it was."""

    id: str
    label: str
    image: str | None = Field(description="path relative to results.json; None: the pictures were not written")
    inversion_image: str | None
    region_images: dict[str, str] = Field(default_factory=dict, description="mask by region name, white inside")
    inversion_mse: float
    inversion_perceptual: float | None = None


class InversionSummary(Row):
    """Fidelity of the inversions shared by all models, images in [0, 1]."""

    method: str
    n: int
    mse: float
    mse_max: float
    encoder_mse: float | None = None
    pivot_mse: float | None = None
    editability: float | None = Field(
        default=None, description="mean correlation of a latent step's image change before and after tuning"
    )
    perceptual: Perceptual | None = None
    composition: dict[int, Interval] = Field(
        default_factory=dict,
        description="mean absolute difference to the query image after so many inversions in a row without an edit",
    )


class LabelExplanation(Row):
    """What concerns the counterfactuals of all models towards one label."""

    queries: list[Query] = Field(default_factory=list)
    queries_asked: int = 0
    comparisons: list[Comparison] = Field(default_factory=list)
    inversion: InversionSummary | None = None


class Environment(Row):
    """What the numbers were computed with."""

    versions: dict[str, str]
    device: str
    platform: str
    seconds: dict[str, float] = Field(default_factory=dict, description="wall time by stage")
    peak_memory_mb: float | None = None


class Site(Row):
    """One of the audits that were joined, made where its data lie."""

    name: str
    n: int = Field(description="audited images")
    created: str
    version: str = Field(description="of spruce-audit")


class OverSites(Row):
    """One number at every site, and how far the sites differ."""

    model: str = Field(description="of a difference, both: 'A - B'")
    metric: str = Field(description="dotted path, for instance 'robust.pgd.8/255'")
    by_site: dict[str, Interval]
    across: Interval | None = Field(
        description="at a site like these: mean and interval of random effects (DerSimonian & Laird; Hartung & Knapp); "
        "None: the number is not joined, or the sites do not tell its variance"
    )
    q: float | None = Field(default=None, description="Cochran's Q; of shares, of their log-odds, as all that follows")
    p_value: float | None = Field(default=None, description="of Q: the sites differ by chance only")
    i2: float | None = Field(default=None, description="share of the variation that is not chance")
    tau2: float | None = Field(default=None, description="variance between the sites")


class Sites(Row):
    """What the numbers of several sites were joined from."""

    sites: list[Site]
    numbers: list[OverSites]


class AuditResult(Row):
    """The whole of `results.json`."""

    schema_version: str = SCHEMA_VERSION
    shared: Literal["minimal"] | None = Field(
        default=None, description="minimal: without images, ids, paths and rows of single images"
    )
    sites: Sites | None = Field(default=None, description="None: not joined from several audits")
    name: str
    created: str = Field(description="ISO 8601, UTC")
    complete: bool = Field(description="False: a stage did not finish; a gate never passes on it")
    config: dict[str, Any]
    seed: int
    classes: list[str]
    generator_sha256: str | None = None
    generator_package: str | None = Field(
        default=None, description="package and version that read the generator; None: this one"
    )
    encoder_sha256: str | None = None
    data: dict[str, Any] = Field(
        description="source, split sizes, image shape; `audited_sha256`: hash of the audited images, labels and ids; "
        "`calibration_sha256`: hash of the ids and labels of the calibration images, where there are any"
    )
    data_read: DataRead | None = None
    label_counts: LabelCounts | None = Field(default=None, description="None: every image is of one class")
    models: list[ModelResult]
    notices: list[Notice] = Field(default_factory=list)
    comparisons: list[Comparison] = Field(default_factory=list)
    differences: list[Difference] = Field(default_factory=list)
    queries: list[Query] = Field(default_factory=list)
    queries_asked: int = 0
    label_explanations: dict[str, LabelExplanation] = Field(
        default_factory=dict, description="of models of labels, by the labels of which there are counterfactuals"
    )
    inversion: InversionSummary | None = None
    perceptual_embedding: Embedding | None = None
    realism_embedding: Embedding | None = None
    realism_kernel: Literal["energy", "cmmd"] = Field(
        default="cmmd", description="kernel of realism's distance; files of earlier versions do not name it"
    )
    component_definitions: Literal[1, 2] = Field(
        default=1,
        description="2: localisation counts what is seen of an edit, transfer how far judges follow it; 1, in files "
        "that do not say: the whole edit, and judges that say yes or no",
    )
    judged_by_steering: list[str] = Field(
        default_factory=list,
        description="dotted paths of numbers that rest on the very network which inversion or search minimised a "
        "distance in",
    )
    not_computed: list[NotComputed] = Field(default_factory=list)
    environment: Environment

    def of_label(self, name: str) -> "AuditResult":
        """Return the audit of one label, as one of the two classes "no LABEL" and "LABEL"."""
        models = [model.of_label(name) for model in self.models]
        found = self.label_explanations.get(name, LabelExplanation())
        shared = {key: getattr(found, key) for key in LabelExplanation.model_fields}
        prefix = f"labels.{name}."
        differences = [
            row.model_copy(update={"metric": row.metric.removeprefix(prefix)})
            for row in self.differences
            if row.metric.startswith(prefix)
        ]
        return self.model_copy(update={"models": models, "differences": differences, **shared})

    def to_pandas(self) -> "dict[str, pd.DataFrame]":
        """Return tidy tables by name: models, queries, attacks and more (`audit.results.frames.frames` says which).

        Needs pandas (extra `export`); raises ResultsError where it is not installed.
        """
        return frames(self.model_dump())


def why_not_computed(metric: str, model: ModelResult | ComparedMethod | None, audit: AuditResult) -> str | None:
    """Return the reason noted for the absence of the number at the dotted path `metric`, the most specific one."""
    notes = [*(model.not_computed if model is not None else ()), *audit.not_computed]
    found = [(path, note.why) for note in notes for path in note.paths if f"{metric}.".startswith(f"{path}.")]
    label = model.label_of(metric) if isinstance(model, ModelResult) else None
    if not found and label is not None and isinstance(model, ModelResult):
        return why_not_computed(metric.removeprefix(f"labels.{label}."), model.of_label(label), audit)
    return max(found, key=lambda one: len(one[0]))[1] if found else None


def json_schema() -> dict[str, Any]:
    """JSON Schema of `results.json`, as shipped in `audit/results.schema.json`."""
    schema = AuditResult.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def read_results(path: str | Path) -> AuditResult:
    """Read a `results.json`; raises ResultsError naming file and remedy if missing, broken or of another major."""
    file = Path(path)
    if not file.is_file():
        raise ResultsError(f"Results file '{file}' does not exist: run `spruce-audit run` first or check the path.")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # a number of 5000 digits is no JSONDecodeError
        raise ResultsError(f"Results file '{file}' is not valid JSON ({error}): run the audit again.") from None
    version = str(values.get("schema_version", "")) if isinstance(values, dict) else ""
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise ResultsError(
            f"Results file '{file}' has schema version '{version or 'none'}' where {SCHEMA_VERSION} is read: "
            "run the audit again with this version of spruce-audit."
        )
    try:
        return AuditResult.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ResultsError(f"Results file '{file}' is not valid at '{where}': {first['msg']}.") from None
