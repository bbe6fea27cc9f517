"""On which side of its bound a number lies, or a change since the baseline, and whether the images suffice to tell.

A verdict is given where the whole 95 % interval lies on one side. Of a change, the interval is that of the paired
difference: by Newcombe's method for shares of images, by the percentile bootstrap over images for means and the index
(Efron & Tibshirani 1993, chapter 13). Where no change at all is allowed, two shares are told apart by McNemar's exact
test. A number that is not kept for every image is compared by its two intervals as if they were of different images
(Newcombe 1998, method 10, without the correlation): on equal images that is too wide, and never too narrow unless the
two models get opposite images right.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from audit.gate.policy import Measured, metrics_of, table_of
from audit.results import MEANINGFULNESS, AuditResult, Interval, ModelResult

LEVEL = 0.95
RESAMPLES = 2000
ROUNDING = 1e-9
"""0.9 - 0.05 is 0.8500000000000001 in binary; a bound met to nine digits is met."""

Side = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its interval, measured on `n` images; `p_value` is that it is 0, by `method`."""

    value: float
    low: float
    high: float
    n: int
    method: str = ""
    p_value: float | None = None

    def __neg__(self) -> "Estimate":
        return Estimate(-self.value, -self.high, -self.low, self.n, self.method, self.p_value)

    def told(self, bound: float) -> str:
        """Return the sentence that says what a verdict at `bound` rests on."""
        exact = "" if self.p_value is None or bound != 0 else f"exact McNemar p = {self.p_value:.2g}"
        how = ", ".join(filter(None, (self.method, exact)))
        return f"95 % interval {self.low:.4g} to {self.high:.4g}{f' ({how})' if how else ''}."


def side_of(estimate: Estimate, bound: float) -> Side:
    """Return on which side of `bound`, the greatest value allowed, the estimate surely lies."""
    if bound == 0 and estimate.p_value is not None:
        if estimate.p_value >= 1 - LEVEL:
            return "inconclusive"
        return "fail" if estimate.value > 0 else "pass"
    if estimate.high <= bound + ROUNDING:
        return "pass"
    return "fail" if estimate.low > bound + ROUNDING else "inconclusive"


def more_images(estimate: Estimate, bound: float) -> int | None:
    """Return how many images more would tell, if the value stays as it is; None: it is at the bound, or n is unknown.

    The distance from the value to the end of its interval that lies beyond the bound falls with the square root of n.
    """
    gap = estimate.value - bound
    if abs(gap) <= ROUNDING or estimate.n == 0:
        return None
    reach = estimate.value - estimate.low if gap > 0 else estimate.high - estimate.value
    return max(math.ceil(estimate.n * (reach / gap) ** 2) - estimate.n, 1)


def own_estimate(number: Measured) -> Estimate | None:
    """Return a model's own number as an estimate; None where it has no interval."""
    value, low, high = (number.bound(end) for end in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return None
    return Estimate(value, low, high, number.n)


def change(metric: str, new: ModelResult, old: ModelResult, now: AuditResult, before: AuditResult) -> Estimate | None:
    """Return `metric` of `new` in `now` less that of `old` in `before`; None where one of the two has no interval.

    The numbers are taken as comparable. Both audits may be one.
    """
    label = new.label_of(metric)
    if label is not None:
        here_alone = now.of_label(label)
        there_alone = here_alone if now is before else before.of_label(label)
        path = metric.removeprefix(f"labels.{label}.")
        return change(path, new.of_label(label), old.of_label(label), here_alone, there_alone)
    here, there = (metrics_of(model).get(metric) for model in (new, old))
    if here is None or there is None:
        return None
    if here == there and new.weights_sha256 is not None and new.weights_sha256 == old.weights_sha256:
        return Estimate(0.0, 0.0, 0.0, here.n, "both have the same weights")
    joint = _joint_change(metric, new.name, old.name, now) if now is before else None
    if now.sites is not None:  # its intervals know that images of one site are alike; single images do not
        return joint or _change_unpaired(here, there)
    found = None
    if metric.split(".")[0] not in MEANINGFULNESS or {r.query for r in new.queries} == {r.query for r in old.queries}:
        found = _change_of_shares(metric, new, old) or _change_of_means(metric, new, old, now.seed)
    return found or joint or _change_unpaired(here, there)


def _joint_change(metric: str, new: str, old: str, audit: AuditResult) -> Estimate | None:
    """Return what the audit of both models itself says of the difference."""
    kind, _, component = metric.partition(".")
    rows: list[tuple[str, str, Interval | None, str]] = [
        (one.a, one.b, one.difference, "paired") for one in audit.differences
        if metric in (one.metric, f"{one.metric}.mean_accuracy")
    ]  # fmt: skip
    if kind in ("index", "components"):
        rows += [
            (
                one.a,
                one.b,
                one.difference if kind == "index" else one.components.get(component),
                "paired bootstrap" if one.paired else "bootstrap",
            )
            for one in audit.comparisons
        ]
    for a, b, found, method in rows:
        if {a, b} == {new, old} and found is not None and None not in (found.value, found.low, found.high):
            estimate = _estimate(found, method)
            return estimate if a == new else -estimate
    return None


def _estimate(interval: Interval, method: str, p_value: float | None = None) -> Estimate:
    assert interval.value is not None
    assert interval.low is not None
    assert interval.high is not None
    return Estimate(interval.value, interval.low, interval.high, interval.n, method, p_value)


def _wrong(model: ModelResult, metric: str) -> tuple[frozenset[str], int] | None:
    """Return the ids of the images that a share does not count, and of how many images it is the share."""
    if metric == "clean.accuracy" and model.clean.misclassified is not None:
        return frozenset(model.clean.misclassified), model.clean.n
    if metric == "counterfactuals.off_target.valid":
        return frozenset(row.query for row in model.queries if row.moved or not row.flipped), len(model.queries)
    key = {"counterfactuals.flip_ratio": "flipped", "counterfactuals.reached": "reached"}.get(metric)
    if key is not None:
        return frozenset(row.query for row in model.queries if not getattr(row, key)), len(model.queries)
    table = table_of(model, metric)
    radius = "" if table is None else metric.removeprefix(f"{table.path}.").removesuffix(".robust_accuracy")
    attack = None if table is None else table.radii.get(radius)
    if attack is None or not attack.outcomes:
        return None
    return frozenset(row_id for row_id, by in attack.outcomes.items() if by is not None), len(attack.outcomes)


def _change_of_shares(metric: str, new: ModelResult, old: ModelResult) -> Estimate | None:
    here, there = _wrong(new, metric), _wrong(old, metric)
    if here is None or there is None or here[1] != there[1] or here[1] == 0:
        return None
    (wrong, n), (was_wrong, _) = here, there
    from audit.metrics.shares import exact_mcnemar, paired_shares  # brings scipy, which most gates do without

    gained, lost = len(was_wrong - wrong), len(wrong - was_wrong)
    interval = paired_shares(n - len(wrong | was_wrong), gained, lost, n, LEVEL)
    return _estimate(interval, "paired", exact_mcnemar(gained, lost))


def _by_query(model: ModelResult, metric: str) -> Mapping[str, float | None]:
    """Return what a number of the counterfactuals is the mean of, by query image; empty for other numbers."""
    if metric.startswith("counterfactuals.regions.") and metric.endswith(".mass"):
        region = metric.removeprefix("counterfactuals.regions.").removesuffix(".mass")
        return {row.query: row.mass.get(region) for row in model.queries}
    key = metric.removeprefix("counterfactuals.").removesuffix(".value").replace("off_target.change", "off_target")
    if not metric.startswith("counterfactuals.") or key not in ("l1", "confidence", "perceptual", "off_target"):
        return {}
    return {row.query: getattr(row, key) for row in model.queries}


def _change_of_means(metric: str, new: ModelResult, old: ModelResult, seed: int) -> Estimate | None:
    here, there = _by_query(new, metric), _by_query(old, metric)
    changes = [a - b for query, a in here.items() if a is not None and (b := there.get(query)) is not None]
    if len(changes) < 2:
        return None
    import numpy as np
    from scipy.stats import bootstrap

    found = bootstrap(
        (np.array(changes),),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(sum(changes) / len(changes), found.low, found.high, len(changes), "paired bootstrap")


def _change_unpaired(new: Measured, old: Measured) -> Estimate | None:
    here, there = own_estimate(new), own_estimate(old)
    if here is None or there is None:
        return None
    value = here.value - there.value
    low = value - math.hypot(here.value - here.low, there.high - there.value)
    high = value + math.hypot(here.high - here.value, there.value - there.low)
    return Estimate(value, low, high, min(here.n, there.n), "intervals of both, not paired")
