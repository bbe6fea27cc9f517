"""The whole of `results.json`."""

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from audit.results.data import DataRead
from audit.results.frames import frames
from audit.results.labels import LabelCounts
from audit.results.model import ComparedMethod, ModelResult
from audit.results.queries import InversionSummary, Query
from audit.results.ranking import Comparison, Difference
from audit.results.row import Embedding, NotComputed, Row
from audit.results.sites import Sites

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = "1.1"
"""Major number changes when a reader of the old file would misread the new one."""


class Notice(Row):
    """Something to know before a number is believed; the audit went on as it was configured."""

    subject: str = Field(description="'data', 'generator', 'audit', or the name of a model")
    kind: str = Field(description="stable name for programs, for instance 'one-class'")
    text: str = Field(description="what was seen, what it means and how to mend it")


class LabelExplanation(Row):
    """What concerns the counterfactuals of all models towards one label."""

    queries: list[Query] = Field(default_factory=list)
    queries_asked: int = 0
    comparisons: list[Comparison] = Field(default_factory=list)
    index_weights: dict[str, float] = Field(default_factory=dict)
    inversion: InversionSummary | None = None


class Environment(Row):
    """What the numbers were computed with."""

    versions: dict[str, str]
    device: str
    platform: str
    seconds: dict[str, float] = Field(default_factory=dict, description="wall time by stage")
    peak_memory_mb: float | None = None


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
    component_definitions: Literal[1, 2, 3, 4] = Field(
        default=1,
        description="4: response asks about acquisition, too, and takes root mean squares; 3: it asks about edits, and "
        "takes means; 2: localisation counts what is seen of an edit, transfer how far judges follow it; 1, in files "
        "that do not say: the whole edit, and judges that say yes or no",
    )
    index_weights: dict[str, float] = Field(
        default_factory=dict,
        description="weights of the components that the index rests on; empty: there is no index, or the file is older "
        "and its configuration has them",
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
