"""What models decide by: interventions, tokens, groups, and attribution maps."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from audit.config.section import Section

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
