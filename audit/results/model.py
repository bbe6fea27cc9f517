"""Everything measured of one classifier."""

from typing import Literal

from pydantic import Field

from audit.results.attribution import Attribution
from audit.results.clean import Clean
from audit.results.counterfactuals import Counterfactuals
from audit.results.labels import LabelQuality, LabelSummary
from audit.results.loading import LoadingCheck, ModelInput, Reading
from audit.results.queries import QueryRow
from audit.results.ranking import Components
from audit.results.reliance import Reliance
from audit.results.robustness import Robust
from audit.results.row import Failure, NotComputed, Row

MEANINGFULNESS = ("index", "rank", "components", "counterfactuals", "methods", "left_out_by_inversion")
"""First parts of the paths of a model's numbers that rest on the generator."""


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
