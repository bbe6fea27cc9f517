"""Which images are explained, and how their counterfactuals are found."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from audit.config.section import Section


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
    shrink_steps: int = Field(
        110,
        ge=1,
        description="spruce: most steps of making it smaller; as many again for an edit that ends well beyond its goal",
    )
    shrink_local: bool = Field(
        True,
        description="spruce: in the last steps of making it smaller an edit is what can be seen of it and what lies "
        "close by; the rest of the image stays the inversion's",
    )
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
