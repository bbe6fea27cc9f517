"""The index's parts, and how models compare."""

from pydantic import Field

from audit.results.row import Interval, Row

COMPONENTS = ("validity", "realism", "sparsity", "localisation", "transfer", "response")
"""The index's parts, in the order in which they are shown."""


class Components(Row):
    """The index's parts in [0, 1]; None where one could not be computed (the reason is in `not_computed`)."""

    validity: float | None = None
    realism: float | None = None
    sparsity: float | None = None
    localisation: float | None = None
    transfer: float | None = None
    response: float | None = None


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
