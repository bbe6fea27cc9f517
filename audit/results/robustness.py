"""All robustness of a model: attacks, corruptions, another source of images, the vulnerability map."""

from typing import Literal

from pydantic import Field

from audit.results.attacks import (
    ENSEMBLE,
    NORMS,
    PGD,
    AdversarialExample,
    Attack,
    AttackTable,
    MinimalDistance,
    Norm,
    Transferred,
    TrustCheck,
    attack_path,
)
from audit.results.clean import Clean
from audit.results.regions import RegionShare
from audit.results.row import Interval, Row


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
    regions: list[RegionShare] = Field(default_factory=list, description="where the map's mass lies")
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
