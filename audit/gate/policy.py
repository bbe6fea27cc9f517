"""What a gate may ask of an audit: the schema of `gate.toml`, and the flat table of numbers that its rules name.

A policy is a list of `[[rule]]` tables. Each names a metric by its dotted path in a model's result (`index`,
`components.localisation`, `clean.accuracy`, `robust.ensemble.8/255`, `counterfactuals.regions.marker.mass`) and at
least one bound, or asks by `above` that a model be ranked above another one. A robust accuracy or a minimal distance
that failed a trust check, or whose checks were not made, passes no bound unless the rule allows it.
`benchmarks/gate.toml` is a commented example.
"""

import math
import re
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from audit.config import Section, read_config
from audit.gate.ranges import bound_error
from audit.results import (
    MEANINGFULNESS,
    Attack,
    AttackTable,
    Attribution,
    CascadeStage,
    Corruption,
    Distribution,
    Group,
    Interval,
    Intervention,
    Judge,
    Measurements,
    MinimalDistance,
    ModelResult,
    Perceptual,
    Reaction,
    RegionShare,
    Row,
    Transferred,
    Treated,
    TrustCheck,
    VulnerabilityShare,
)

Use = Literal["value", "low", "high"]


class Rule(Section):
    """One requirement; several bounds in one rule are checked one by one."""

    metric: str | None = Field(None, description="dotted path into a model's result, for instance 'components.realism'")
    models: tuple[str, ...] | None = Field(None, min_length=1, description="models it holds for; default: all")
    min: float | None = Field(None, description="least value allowed", allow_inf_nan=False)
    max: float | None = Field(None, description="greatest value allowed", allow_inf_nan=False)
    max_drop: float | None = Field(None, ge=0, description="greatest fall below the baseline's value")
    max_rise: float | None = Field(None, ge=0, description="greatest rise above the baseline's value")
    baseline_model: str | None = Field(None, description="model of the baseline file; default: the one of equal name")
    use: Use = Field("value", description="compare the value, or the lower or upper end of its interval")
    above: str | None = Field(None, description="the models must have a higher index than this model of the same audit")
    probability: float = Field(0.95, gt=0, lt=1, description="least bootstrap probability for 'above'")
    only_if: Literal["significant"] | None = Field(
        None, description="pass or fail only where the 95 % interval lies on one side of the bound; else inconclusive"
    )
    allow_untrusted: bool = Field(False, description="let a number pass that failed one of its trust checks")
    allow_unchecked: bool = Field(False, description="let a robust accuracy pass whose trust checks were not all made")

    @model_validator(mode="after")
    def _one_kind(self) -> "Rule":
        bounds = [k for k in ("min", "max", "max_drop", "max_rise") if getattr(self, k) is not None]
        if self.above is not None:
            if self.metric is not None or bounds:
                raise ValueError("'above' stands alone; put 'metric' and its bounds into a rule of their own")
            return self
        if self.only_if is not None and self.use != "value":
            raise ValueError("'only_if' looks at both ends of the interval: remove 'use'")
        if self.metric is None:
            raise ValueError("a rule needs 'metric' with a bound, or 'above'")
        if not bounds:
            raise ValueError(f"the rule on '{self.metric}' needs one of min, max, max_drop, max_rise")
        if self.baseline_model is not None and self.max_drop is None and self.max_rise is None:
            raise ValueError("'baseline_model' needs max_drop or max_rise")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min = {self.min:g} on '{self.metric}' is above max = {self.max:g}: no number keeps both")
        for key in bounds:
            if (error := bound_error(self.metric, key, getattr(self, key))) is not None:
                raise ValueError(error)
        return self


class Policy(Section):
    """The whole of `gate.toml`."""

    inconclusive: Literal["pass", "fail"] | None = Field(
        None, description="what a rule counts as that the images do not suffice to decide; absent: exit status 2"
    )
    rule: tuple[Rule, ...] = Field(min_length=1, description="the requirements; all of them must hold")


def load_policy(path: str | Path) -> Policy:
    """Read a gate's TOML file; raises ConfigError naming the key and the remedy."""
    return read_config(Policy, path)


def first_policy() -> str:
    """Return a commented `gate.toml` to begin with, of rules that any audit of one class an image measures."""
    return files("audit.gate").joinpath("start.toml").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Measured:
    """A number with the ends of its interval, on `n` images; None where it was not measured or is not finite.

    `whose` tells what it is the number of, where that is one of several things and the path does not say which.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    whose: str = field(default="", compare=False)

    def bound(self, use: Use) -> float | None:
        """Return the value, or an end of the interval; never one in place of another."""
        number = {"value": self.value, "low": self.low, "high": self.high}[use]
        return number if number is not None and math.isfinite(number) else None


def _measured(interval: Interval, whose: str = "") -> Measured:
    return Measured(interval.value, interval.low, interval.high, interval.n, whose)


def _list_key(item: Row) -> str | None:
    match item:
        case RegionShare():
            return item.region
        case Judge():
            return item.name
        case Distribution():
            return item.target
        case TrustCheck() | Corruption() | Intervention():
            return item.name
        case Reaction():
            return f"{item.strength:g}"
        case Treated():
            return f"{item.region}.{item.part}.{item.treatment}"
        case Group():
            return f"{item.column}.{item.value}"
        case MinimalDistance():
            return item.path.removeprefix("robust.distances.")
        case VulnerabilityShare():
            return f"{item.share:g}"
        case CascadeStage():
            return item.attack
        case Attribution():
            return item.method
        case Transferred():
            return f"{item.source}.{item.metric}"
        case _:
            return None


_NO_NUMBERS = {
    "distances_by_image", "outcomes", "source", "attack", "confusion", "input", "failed", "method", "method_package",
    "weights_sha256", "misclassified", "role", "vetoes", "veto", "extent", "mass_interval", "unexplained", "towards",
    "of_class", "class_towards", "example", "index_interval", "component_intervals",
}  # fmt: skip
"""Parts that hold nothing to gate on: images, decisions, how a model was read; intervals stand with their numbers."""

_WHOLE_PARTS = {"label_summary", "reliance"}
"""Parts that an audit may lack: what is not there is no number that was not measured."""


def _flatten(node: object, path: str, table: dict[str, Measured]) -> None:
    # The short name of a row with one leading number is that number: 'robust.pgd.8/255', 'counterfactuals.mmd.healthy'.
    match node:
        case bool() | str():
            return
        case None if path in _WHOLE_PARTS:
            return
        case int() | float() | None:
            table[path] = Measured(node)
            return
        case Interval():
            table[path] = _measured(node)
            return
        case Attack():
            _flatten(node.robust_accuracy, path, table)
        case Distribution() | Perceptual():
            table[path] = Measured(node.value)
    children: list[tuple[str, object]] = []
    if isinstance(node, Row):
        children = [(name, getattr(node, name)) for name in type(node).model_fields if name not in _NO_NUMBERS]
    elif isinstance(node, dict):
        children = [(str(key), value) for key, value in node.items()]
    elif isinstance(node, list):
        children = [(key, item) for item in node if isinstance(item, Row) and (key := _list_key(item)) is not None]
    for key, child in children:
        _flatten(child, f"{path}.{key}" if path else key, table)
    if isinstance(node, RegionShare) and node.mass_interval is not None:
        table[f"{path}.mass"] = Measured(node.mass, *node.mass_interval, node.n)


def part_of(model: ModelResult, metric: str) -> tuple[ModelResult, str]:
    """Return the model as one of the label that the path `metric` names, with the path below it; else as it is."""
    name = model.label_of(metric)
    return (model, metric) if name is None else (model.of_label(name), metric.removeprefix(f"labels.{name}."))


def attack_of(model: ModelResult, metric: str) -> Attack | None:
    """Return the attack that the path `metric` ('robust.pgd.8/255' or a number below it) belongs to, if it does."""
    table = table_of(model, metric)
    if table is None:
        return None
    rest = part_of(model, metric)[1].removeprefix(f"{table.path}.")
    # The longest: '1' begins '1.5' as well.
    radius = max((one for one in table.radii if f"{rest}.".startswith(f"{one}.")), key=len, default=None)
    return None if radius is None else table.radii[radius]


def table_of(model: ModelResult, metric: str) -> AttackTable | None:
    """Return the numbers of the attack, in its norm, that the path `metric` belongs to."""
    part, path = part_of(model, metric)
    return next((table for table in part.robust.tables() if path.startswith(f"{table.path}.")), None)


@dataclass(frozen=True)
class Doubts:
    """Why a number must not be believed, and which checks of it were not made: a sentence each."""

    untrusted: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()


def doubts_of(model: ModelResult, metric: str) -> Doubts:
    """Return the doubts about the number at the path `metric`: those of the attack or search it is the outcome of."""
    part, path = part_of(model, metric)
    if path.split(".")[0] in MEANINGFULNESS and part.counterfactuals is not None:
        why = part.counterfactuals.unexplained
        ruin = () if why is None else (f"No edit within the generator's range explains {model.name}: {why}.",)
        return Doubts((*part.counterfactuals.untrusted, *ruin))
    joined = re.fullmatch(r"label_summary\.(?:any_label|joint)\.(.+)\.(?:right|falls|kept|by_label\..+)", metric)
    if joined is not None:
        # They are made of the attacks on the single labels, or tell of the same gradients.
        kind = joined[1] if ".any_label." in metric else f"pgd{'_' if joined[1].startswith('l2.') else '.'}{joined[1]}"
        found = [doubts_of(model, f"labels.{name}.robust.{kind}") for name in model.labels]
        return Doubts(
            tuple(dict.fromkeys(reason for one in found for reason in one.untrusted)),
            tuple(dict.fromkeys(reason for one in found for reason in one.unchecked)),
        )
    if part is not model and part.unreliable:
        return Doubts(tuple(part.unreliable))
    attack: Attack | MinimalDistance | None = attack_of(model, metric)
    table = table_of(model, metric)
    kind = "distance" if table is None else table.attack
    for row in part.robust.distances:
        if f"{path}.".startswith(f"{row.path}."):
            attack, kind = row, row.attack or kind
    if attack is None:
        return Doubts()
    unchecked = list(attack.unchecked)
    unchecked += [check.finding for check in part.robust.checks if check.passed is None and kind in check.attacks]
    if not unchecked and part.robust.trusted is None:
        unchecked.append("Not all of the trust checks of this model were made.")
    return Doubts(tuple(attack.untrusted), tuple(dict.fromkeys(unchecked)))


def _headlines(model: ModelResult) -> dict[str, Measured]:
    """Return single numbers that stand for tables: of what the model relies on, and of how it was loaded."""
    found: dict[str, Measured] = {}
    if model.certificate:
        failed = [check.name for check in model.certificate if check.passed is False]
        found["certificate.failed"] = Measured(len(failed), whose=", ".join(failed))
        for check in model.certificate:
            found[f"certificate.{check.name}"] = Measured(None if check.passed is None else float(check.passed))
    if model.reliance is None:
        return found

    def worst(rows: list[Intervention]) -> Measured:
        row = max(rows, key=lambda row: row.worst.hit_order)
        return _measured(row.worst.hit, _told(row, row.worst))

    rows = model.reliance.interventions
    kinds = dict.fromkeys(row.kind for row in rows)
    if rows:
        found["reliance.worst"] = worst(rows)
    found |= {f"reliance.worst.{kind}": worst([row for row in rows if row.kind == kind]) for kind in kinds}
    for row in rows:
        for reaction in row.reactions:
            path = f"reliance.interventions.{row.name}.reactions.{reaction.strength:g}"
            found[f"{path}.changed"] = _measured(reaction.changed, reaction.variant)
            found[f"{path}.class_changed"] = _measured(reaction.class_changed, _told(row, reaction))
    for treated in model.reliance.regions:
        # Each way of taking pixels away leaves traces of its own: what all of them show is told.
        needed = treated.part == "region"
        kept = _measured(treated.stay_right, f"{'' if needed else 'all but '}{treated.region} {treated.treatment}")
        name = f"reliance.{'necessity' if needed else 'sufficiency'}.{treated.region}"
        found[name] = _least(found.get(name), _lost(kept) if needed else kept)
    if model.reliance.groups:
        group = model.reliance.groups[0]
        found["reliance.gap"] = _measured(group.gap, f"{group.column} {group.value}")
    return found


def _told(row: Intervention, reaction: Reaction) -> str:
    """Return what changes the decisions behind `reaction.hit`, of which class they are and which they become."""
    if not reaction.hit.value:
        return ""
    how = ", ".join(filter(None, (reaction.variant, row.extent(reaction))))
    whose = "" if reaction.of_class is None else f" for '{reaction.of_class}'"
    towards = "" if reaction.hit_towards is None else f", mostly to '{reaction.hit_towards}'"
    return f"{row.name} ({how}), which changes decisions{whose}{towards}"


def _lost(kept: Measured) -> Measured:
    """Return the share that is lost where `kept` is the one that stays."""
    value, low, high = (None if one is None else 1 - one for one in (kept.value, kept.high, kept.low))
    return replace(kept, value=value, low=low, high=high)


def _least(one: Measured | None, other: Measured) -> Measured:
    """Return the smaller number; what was not measured is smaller than anything, for it proves nothing."""
    if one is None or one.value is None or other.value is None:
        return other if one is None or one.value is not None else one
    return min(one, other, key=lambda measured: measured.value or 0.0)


def metrics_of(model: ModelResult) -> dict[str, Measured]:
    """Return every number of one model by dotted path; rows of a list are named by region, judge or target class."""
    table = _numbers_of(model.model_copy(update={"labels": {}})) | _headlines(model)
    for name, label in model.labels.items():
        table |= {f"labels.{name}.{path}": number for path, number in _numbers_of(label).items()}
    return table


def _numbers_of(part: Measurements) -> dict[str, Measured]:
    table: dict[str, Measured] = {}
    _flatten(part.model_copy(update={"queries": [], "not_computed": []}), "", table)
    low, high = part.index_interval or (None, None)
    queries = 0 if part.counterfactuals is None else part.counterfactuals.n
    table["index"] = Measured(part.index, low, high, queries)
    for name, (low, high) in part.component_intervals.items():
        table[f"components.{name}"] = Measured(getattr(part.components, name, None), low, high, queries)
    return table
