"""What a model decides by."""

from typing import Literal

from pydantic import Field

from audit.results.row import Interval, Row

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

    def extent(self, reaction: Reaction) -> str:
        """Return how strong the change was, in words: '10 % of the shorter side'."""
        share = self.unit.startswith("of ")
        number = f"{100 * reaction.strength:g}\N{NO-BREAK SPACE}%" if share else f"{reaction.strength:g}"
        return f"{number} {self.unit}".strip()


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
