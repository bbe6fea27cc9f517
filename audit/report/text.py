"""Text of the report: findings as sentences, and the formatting of numbers, which are never shown as 'nan'."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from audit.results import (
    COMPONENTS,
    MAIN_REGION,
    AuditResult,
    ComparedMethod,
    Counterfactuals,
    Interval,
    ModelResult,
    RegionShare,
    why_not_computed,
)

DASH = "\N{EN DASH}"
MOST_CLASSES = 3
"""Classes that a cell of a table names."""

KERNELS = {"energy": "energy distance", "cmmd": "the kernel of CMMD"}
"""Words for the choices of `metrics.realism_kernel`."""
PICKED = {
    "correct": "those that {} classify correctly, as they are and as inversions",
    "wrong": "those that {} misclassify, as they are and as inversions",
}
"""Words for the choices of `queries.pick`, where there are too few images."""
STEERED = {
    "counterfactuals.perceptual": "the perceptual distance",
    "components.realism": "realism",
    "counterfactuals.judges": "the judge fitted on its features",
}
"""Words for the paths in `judged_by_steering`."""


def finite(value: float | None) -> bool:
    """Say whether `value` is there and is a number."""
    return value is not None and math.isfinite(value)


def number(value: float | None, digits: int = 2) -> str:
    """Return `value` with `digits` decimals, small ones in powers of ten, a dash where there is none."""
    if value is None or not math.isfinite(value):
        return DASH
    if value != 0 and abs(value) < 0.5 * 10**-digits:
        mantissa, exponent = f"{value:.1e}".split("e")
        power = (
            str(int(exponent))
            .replace("-", "\N{SUPERSCRIPT MINUS}")
            .translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))
        )
        return f"{mantissa}·10{power}"
    return f"{value:.{digits}f}"


def percent(value: float | None, digits: int = 1) -> str:
    """Return a share as percentage; a dash where there is none."""
    if value is None or not math.isfinite(100 * value):
        return DASH
    return f"{100 * value:.{digits}f}\N{NO-BREAK SPACE}%"


def bounds(low: float | None, high: float | None, factor: float = 1.0, digits: int = 1) -> str:
    """Return '[low, high]', or '' where an end is missing."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return f"[{factor * low:.{digits}f}, {factor * high:.{digits}f}]"


def percent_bounds(interval: Interval) -> str:
    """Return the interval of a share in percent."""
    return bounds(interval.low, interval.high, 100)


def p_value(value: float | None) -> str:
    """Return a p-value as it is usually printed."""
    if value is None or not math.isfinite(value):
        return DASH
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def probability(value: float) -> str:
    """Return a bootstrap probability; a finite number of draws shows no certainty."""
    return "> 0.99" if value > 0.99 else "< 0.01" if value < 0.01 else f"{value:.2f}"


def in_order(result: AuditResult) -> list[ModelResult]:
    """Return the models best first; those without an index last, in the order of the configuration."""

    def key(model: ModelResult) -> tuple[float, float]:
        index = model.index if model.index is not None and math.isfinite(model.index) else -math.inf
        return (math.inf if model.rank is None else model.rank, -index)

    return sorted(result.models, key=key)


def components(result: AuditResult) -> list[str]:
    """Return the index's parts, as they were when the audit was made."""
    return [name for name in COMPONENTS if name != "response" or result.component_definitions > 2]


def has_acquisition(result: AuditResult) -> bool:
    """Whether response also asked about another acquisition of the images."""
    found = (model.counterfactuals.answered for model in result.models if model.counterfactuals is not None)
    return any(answered is not None and answered.acquisition is not None for answered in found)


def missing_components(model: ModelResult, result: AuditResult) -> list[str]:
    """Return the parts that the model's index does without."""
    return [name for name in components(result) if not finite(getattr(model.components, name))]


def weights(result: AuditResult) -> str:
    """Return the weights of the index's parts, or '' where they are all the same."""
    ranking = result.config.get("ranking")
    settings = ranking if isinstance(ranking, Mapping) else {}
    found = result.index_weights or {name: float(settings.get(name, 1.0) or 0.0) for name in components(result)}
    return "" if len(set(found.values())) < 2 else ", ".join(f"{name} {value:g}" for name, value in found.items())


def unweighted(result: AuditResult) -> list[str]:
    """Return the parts that are shown and do not count in the index."""
    return [name for name in components(result) if result.index_weights and name not in result.index_weights]


def left_out(model: ModelResult) -> list[tuple[str, int]]:
    """Return the classes of which candidates were left out of the query images, and how many, the most first."""
    found = [(name, count) for name, count in model.left_out.items() if count]
    return sorted(found, key=lambda row: -row[1])


def why_missing(metric: str, model: ModelResult | ComparedMethod | None, result: AuditResult) -> str:
    """Return why the number at the dotted path `metric` is not there, as the results tell it."""
    return why_not_computed(metric, model, result) or "not measured"


def steered(result: AuditResult) -> list[str]:
    """Return in words which numbers rest on the network that inversion or search minimised a distance in."""
    return [STEERED.get(path, path) for path in result.judged_by_steering]


def judge_weights(result: AuditResult) -> dict[str, str]:
    """Return the weights of the classifiers that judge and are not audited, by name."""
    found = [m.counterfactuals for m in result.models if m.counterfactuals is not None]
    rows = [row for one in found for row in (*one.judges, *one.copies)]
    return {row.name: row.weights_sha256 for row in rows if row.weights_sha256 is not None}


def in_edits(change: Interval, counterfactuals: Counterfactuals) -> float | None:
    """Return the mean change of an image in units of a model's mean edit; None where it has none."""
    edit = counterfactuals.l1.value
    return change.value / edit if edit and change.value is not None else None


def region_of(model: ModelResult, name: str) -> RegionShare | None:
    """Return the model's shares for one region, or None."""
    rows = model.counterfactuals.regions if model.counterfactuals else []
    return next((row for row in rows if row.region == name), None)


def wrong_region(model: ModelResult) -> RegionShare | None:
    """Return the region other than the main one that holds more of the edit than the main one does, beyond chance."""
    main = region_of(model, MAIN_REGION)
    least = main.mass if main is not None and main.mass is not None else 0.5
    rows = model.counterfactuals.regions if model.counterfactuals else []
    others = [
        row
        for row in rows
        if row.region != MAIN_REGION
        and (row.mass or 0) > least
        and (row.lift or 0) > 1
        and (row.p_value is None or row.p_value <= 0.05)
    ]
    return max(others, key=lambda row: row.lift or 0, default=None)


def is_ranked(model: ModelResult) -> bool:
    """Say whether a model has an index and a place, and was audited to the end."""
    return finite(model.index) and model.rank is not None and model.failed is None


def names(models: Sequence[ModelResult]) -> Markup:
    """Return the models' names in bold, joined as in a sentence."""
    marked = [Markup("<strong>{}</strong>").format(model.name) for model in models]
    head, tail = marked[:-1], marked[-1:]
    return Markup(" and ").join([Markup(", ").join(head), *tail] if head else tail)


def findings(result: AuditResult) -> list[Markup]:
    """Return what a reader must know before trusting the ranking, the gravest first."""
    notes: list[Markup] = []
    if not result.complete:
        notes.append(
            Markup("<strong>The audit did not finish.</strong> What is missing is listed under “Not computed”.")
        )
    notes += explained_images(result)
    notes += [
        Markup("{} cannot be called meaningful: {}.").format(names([model]), model.veto)
        for model in in_order(result)
        if model.veto is not None
    ]
    notes += [
        Markup("<strong>No edit within the generator's range explains {}.</strong>").format(names([model]))
        for model in in_order(result)
        if model.counterfactuals is not None and model.counterfactuals.unexplained is not None
    ]
    weak = {
        judge.name
        for model in result.models
        if model.counterfactuals
        for judge in model.counterfactuals.judges
        if judge.rejects_inversion is not None and judge.rejects_inversion < 0.5
    }
    if weak:
        notes.append(
            Markup("{} already calls most unedited images the target class; agreement of such a judge is no evidence.")
            .format(", ".join(sorted(weak)))
        )  # fmt: skip
    return notes


def local_edits(result: AuditResult) -> bool:
    """Whether the search left out of its edits what cannot be seen of them."""
    settings = result.config.get("counterfactual")
    if not isinstance(settings, Mapping):
        return False
    method = settings.get("method")
    first = method if isinstance(method, str) else method[0] if isinstance(method, Sequence) and method else None
    return first == "spruce" and bool(settings.get("shrink")) and bool(settings.get("shrink_local"))


def explained_images(result: AuditResult) -> list[Markup]:
    """Return what is to be known of the images that the models are explained on, where it is not the usual."""
    notes: list[Markup] = []
    queries = result.config.get("queries")
    pick = str(queries.get("pick", "correct")) if isinstance(queries, dict) else "correct"
    alone = [model for model in result.models if model.unpaired]
    common = [m.counterfactuals.n for m in result.models if m.counterfactuals is not None and not m.unpaired]
    if common and common[0] < result.queries_asked:
        notes.append(
            Markup("{} of the {} query images asked for were explained: {}.").format(
                common[0],
                result.queries_asked,
                PICKED.get(pick, "all that there are").format("all other models" if alone else "all models"),
            )
        )
    if alone:
        notes.append(
            Markup(
                "{} {} explained on images of {} own, since few common ones would have been left with {}, and compared "
                "without pairing."
            ).format(names(alone), *(("is", "its", "it") if len(alone) == 1 else ("are", "their", "them")))
        )
    if pick != "correct":
        notes.append(
            Markup(
                "Edits of misclassified images lead to the class that they belong to; transfer, realism and distances "
                "to real images leave them out."
            )
        )
    return notes


def random_control(model: ModelResult) -> str:
    """Return the accuracies that a share of the attack's pixels leaves, kept at random and chosen by the map.

    The share is the smallest effective one, or the largest measured short of the whole attack where only that works.
    """
    found = model.robust.vulnerability
    parts = [] if found is None else [row for row in found.shares if row.share < 1]
    if found is None or not parts:
        return DASH
    small = found.smallest_share
    row = next((row for row in parts if row.share == small), max(parts, key=lambda row: row.share))
    return f"{percent(row.random_accuracy)} (at {percent(row.share, 0)}; chosen: {percent(row.accuracy.value)})"


def as_toml(values: Mapping[str, Any], prefix: str = "") -> str:
    """Return nested settings in the manner of a TOML file; settings that are not set become comments."""
    plain = {k: v for k, v in values.items() if not _is_table(v)}
    lines = [f"# {k}: not set" if v is None else f"{k} = {json.dumps(v, ensure_ascii=False)}" for k, v in plain.items()]
    for key, value in values.items():
        if not _is_table(value):
            continue
        name = f"{prefix}{key}"
        tables = [(f"[{name}]", value)] if isinstance(value, Mapping) else [(f"[[{name}]]", v) for v in value]
        for title, table in tables:
            lines += ["", title, as_toml(table, f"{name}.")]
    return "\n".join(lines).strip("\n")


def _is_table(value: object) -> bool:
    if isinstance(value, Mapping):
        return True
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)
