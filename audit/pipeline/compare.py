"""Other methods on the same query images, inversions and targets, measured as the audited one is.

No index rests on them, and where one fails that is told and costs nothing else.
"""

from dataclasses import dataclass

import torch

from audit.counterfactual.methods import ChosenMethod
from audit.counterfactual.protocol import Counterfactuals
from audit.metrics.components import components
from audit.pipeline.context import Context
from audit.pipeline.explain import Explained, explain_model
from audit.pipeline.reference import Reference
from audit.pipeline.score import score_model
from audit.pipeline.transfer import Panel
from audit.results import ComparedMethod, Components, Failure, NotComputed
from audit.runtime.faults import reason

NOT_ITS_OWN = "it rests on the edits of all models by the first method"
"""Why no method but the first has a response."""
SHOWN = 3
"""Query images of which the counterfactuals are kept with their pictures: the first ones."""


@dataclass(frozen=True)
class Compared:
    """One model's row of the results for one method, and the counterfactuals of the rows that are kept."""

    row: ComparedMethod
    counterfactuals: Counterfactuals | None = None


def compare(context: Context, method: ChosenMethod, reference: Reference, panel: Panel, audited: Explained) -> Compared:
    """Explain the model of the `audited` counterfactuals by `method`, and measure what that finds."""
    subject, stage = audited.subject, "counterfactuals"
    try:
        with context.watch.stage(f"counterfactuals by {method.name}"):
            explained = explain_model(context, method, reference.networks, audited.queries, subject)
        stage = "metrics"
        with context.watch.stage(stage):
            verdicts = panel.on(subject.name, explained.counterfactuals.images, explained.targets)
            reference = reference.of(audited.queries)
            scored = score_model(context, reference, explained, verdicts, method, response=NOT_ITS_OWN)
            values, missing = components(scored.scores, torch.ones(1, len(explained.targets), dtype=torch.float64))
    except Exception as error:  # noqa: BLE001 - whatever another method fails by, the audit is complete without it
        return Compared(ComparedMethod(failed=Failure(stage=stage, why=reason(error))))
    row = ComparedMethod(
        components=Components(**{key: float(value) for key, value in values.items()}),
        counterfactuals=scored.summary,
        queries=scored.rows[:SHOWN],
        not_computed=[
            *scored.not_computed,
            *(NotComputed(what=key, why=why, paths=[f"components.{key}"]) for key, why in missing.items()),
        ],
    )
    return Compared(row, explained.counterfactuals)
