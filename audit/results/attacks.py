"""Attacks: what they leave standing, whether that may be believed, and examples."""

from typing import Literal, NamedTuple

from pydantic import Field

from audit.results.clean import ClassScores
from audit.results.row import Interval, Row

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
