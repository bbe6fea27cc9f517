"""Decide whether a number may be compared between two audits: everything it depends on has to be the same in both.

A number depends on images, attack, generator, encoder, embeddings, judges of transfer and settings. Where one of them
differs, a change of the number says nothing about the model. What a results file does not record is unknown, and equal
only to what another file does not record either.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from audit.config import (
    AttributionConfig,
    CounterfactualConfig,
    DataConfig,
    InversionConfig,
    MetricsConfig,
    QueryConfig,
    RankingConfig,
    RegionsConfig,
    RelianceConfig,
    RobustnessConfig,
)
from audit.gate.policy import attack_of
from audit.results import MEANINGFULNESS, TRANSFER, Attack, AuditResult, ModelResult

Difference = str | None
"""Why two numbers do not measure the same thing, the end of a sentence; None: they do."""

_SECTIONS: Mapping[str, type[BaseModel]] = {
    "data": DataConfig,
    "regions": RegionsConfig,
    "queries": QueryConfig,
    "inversion": InversionConfig,
    "counterfactual": CounterfactualConfig,
    "metrics": MetricsConfig,
    "ranking": RankingConfig,
    "robustness": RobustnessConfig,
    "reliance": RelianceConfig,
    "attribution": AttributionConfig,
}
_ELSEWHERE = {
    # Files are compared by the hash of what is in them, the kernel by its record, for earlier versions had another. A
    # bound on memory changes no number, nor do the axioms change the others.
    "data": {"path", "format", "shift"},
    "inversion": {"encoder", "max_memory"},
    "metrics": {"embedding", "perceptual", "realism_kernel", "axioms", "null_edits"},
}


def _settings(audit: AuditResult, section: str) -> dict[str, Any]:
    """Return a table of the audit's configuration with its defaults filled in, as plain JSON."""
    given = audit.config.get(section) or {}
    try:
        values = _SECTIONS[section].model_validate(given).model_dump(mode="json")
    except ValidationError:
        return dict(given)  # of a version whose keys were others
    if isinstance(methods := values.get("method"), list):
        values["method"] = methods[0]  # what the audited method is compared with changes no number of its own
    if isinstance(corruptions := values.get("corruptions"), dict):
        corruptions.pop("constants", None)  # the results say what 'auto' came to
    return values


def _other_settings(
    now: AuditResult, before: AuditResult, section: str, keys: Iterable[str] | None = None
) -> Difference:
    """Compare one table of both configurations; `keys`: only these."""
    new, old = _settings(now, section), _settings(before, section)
    compared = [*new, *(key for key in old if key not in new)] if keys is None else list(keys)
    for key in compared:
        if key not in _ELSEWHERE.get(section, ()) and new.get(key) != old.get(key):
            return f"{section}.{key} was {old.get(key)} there and is {new.get(key)} here"
    return None


def _other_sites(now: AuditResult, before: AuditResult) -> Difference:
    """Compare the sites of audits that were joined; one that does not say which images it is of is equal to none."""
    new, old = (None if one.sites is None else sorted(site.name for site in one.sites.sites) for one in (now, before))
    if new != old:
        told = ["of one place" if names is None else f"of the sites {', '.join(names)}" for names in (old, new)]
        return f"it is {told[0]} there and {told[1]} here"
    if new is not None and None in (now.data.get("audited_sha256"), before.data.get("audited_sha256")):
        return "the sites do not say which images they audited: run them, and `spruce-audit merge`, with this version"
    return None


def _other_images(now: AuditResult, before: AuditResult) -> Difference:
    """Compare the audited images: their classes and their content, where both files say it."""
    if (sites := _other_sites(now, before)) is not None:
        return sites
    if now.classes != before.classes:
        return f"its classes are {', '.join(before.classes)} there and {', '.join(now.classes)} here"
    new, old = now.data.get("audited_sha256"), before.data.get("audited_sha256")
    if (new is None) != (old is None):
        where = "the baseline" if old is None else "this audit"
        return f"{where} does not say which images it was measured on: run it again with this version"
    if new != old:
        return "it was measured on other images"
    for key in ("audited", "shape"):
        if now.data.get(key) != before.data.get(key):
            return f"it was measured on other images ({key}: {before.data.get(key)} there, {now.data.get(key)} here)"
    return None


def _other_seed(now: AuditResult, before: AuditResult) -> Difference:
    return None if now.seed == before.seed else f"the seed was {before.seed} there and is {now.seed} here"


def _judges(model: ModelResult, audit: AuditResult, without: set[str]) -> dict[str, str]:
    """Return the judges of a model's counterfactuals and the weights of those that are models, by name."""
    weights = {other.name: other.weights_sha256 or "" for other in audit.models}
    found = model.counterfactuals.judges if model.counterfactuals is not None else []
    return {j.name: j.weights_sha256 or weights.get(j.name, "") for j in found if j.name not in without}


def _copies(model: ModelResult) -> list[str | None]:
    """Return the weights of the copies of a model."""
    return [] if model.counterfactuals is None else [copy.weights_sha256 for copy in model.counterfactuals.copies]


def _other_judges(new: ModelResult, old: ModelResult, now: AuditResult, before: AuditResult) -> Difference:
    # Neither model judges itself, so that two models of one audit have each other.
    themselves = {new.name, old.name}
    here, there = _judges(new, now, themselves), _judges(old, before, themselves)
    if set(here) != set(there):
        return f"its judges are {', '.join(there) or 'none'} there and {', '.join(here) or 'none'} here"
    changed = [name for name in here if here[name] != there[name]]
    return f"judge '{changed[0]}' has other weights" if changed else None


def _other_queries(new: ModelResult, old: ModelResult) -> Difference:
    here, there = [row.query for row in new.queries], [row.query for row in old.queries]
    if here == there:
        return None
    shared = len(set(here) & set(there))
    return f"other query images were explained ({shared} of {len(there)} there are among the {len(here)} here)"


def _other_measure(
    metric: str, new: ModelResult, old: ModelResult, now: AuditResult, before: AuditResult
) -> Difference:
    """Compare what depends on the other models of an audit: the index's parts, and the number of edits."""
    lacks = [
        {path for note in audit.not_computed for path in note.paths if path.startswith("components.")}
        for audit in (before, now)
    ]
    if metric in ("index", "rank") and lacks[0] != lacks[1]:
        words = [", ".join(sorted(p.removeprefix("components.") for p in one)) or "nothing" for one in lacks]
        return f"its index leaves out {words[0]} there and {words[1]} here"
    path = metric.split(".")
    if path[:1] == ["counterfactuals"] and path[1] in ("fid", "cmmd", "mmd") and new.counterfactuals is not None:
        edits = [{row.target: row.n for row in getattr(model.counterfactuals, path[1], ())} for model in (old, new)]
        if edits[0] != edits[1]:
            return f"it rests on {edits[0]} edits by target class there and {edits[1]} here"
    return None


def _other_explanation(new: ModelResult, old: ModelResult, now: AuditResult, before: AuditResult) -> Difference:
    """Compare what the index, its components and the counterfactuals rest on."""
    if now.generator_sha256 != before.generator_sha256:
        return "it was measured with another generator"
    if now.encoder_sha256 != before.encoder_sha256:
        return "it was measured with another encoder"
    for name in ("realism_embedding", "perceptual_embedding"):
        if getattr(now, name) != getattr(before, name):
            return "it rests on another embedding"
    if now.realism_kernel != before.realism_kernel:
        return f"metrics.realism_kernel was {before.realism_kernel} there and is {now.realism_kernel} here"
    versions = [audit.environment.versions.get("spruce-audit") for audit in (before, now)]
    if versions[0] != versions[1]:
        return f"version {versions[0]} of spruce-audit searched it there and {versions[1]} here"
    if now.component_definitions != before.component_definitions:
        return "the index and its components are defined otherwise since: run the baseline again with this version"
    if now.data.get("calibration_sha256") != before.data.get("calibration_sha256"):
        return "it was calibrated on other images"
    sections = ("data", "regions", "queries", "inversion", "counterfactual", "metrics", "ranking")
    differences = (_other_settings(now, before, section) for section in sections)
    return (
        next((found for found in differences if found is not None), None)
        or _other_seed(now, before)
        or _other_queries(new, old)
        or _other_judges(new, old, now, before)
    )


def _other_attack(new: Attack, old: Attack, now: AuditResult, before: AuditResult) -> Difference:
    if (new.norm, new.eps) != (old.norm, old.eps):
        return f"the radius was {old.eps:.4g} in {old.norm} there and is {new.eps:.4g} in {new.norm} here"
    if (new.steps, new.restarts) != (old.steps, old.restarts):
        return "the attack had another norm, number of steps or of restarts"
    if [stage.attack for stage in new.stages] != [stage.attack for stage in old.stages]:
        return "the cascade had other stages"
    if new.robust_accuracy.n != old.robust_accuracy.n:
        return f"{old.robust_accuracy.n} images were attacked there and {new.robust_accuracy.n} here"
    if new.outcomes and old.outcomes and set(new.outcomes) != set(old.outcomes):
        return "other images were attacked"
    if new.source != old.source:
        return f"the attack was of {old.source or 'this package'} there and is of {new.source or 'this package'} here"
    keys = ("ensemble",) if new.stages else ("step_size", "momentum")
    return _other_options(now, before) or _other_settings(now, before, "robustness", keys)


def _other_models(new: ModelResult, old: ModelResult, now: AuditResult, before: AuditResult) -> Difference:
    here, there = (
        {other.name: other.weights_sha256 for other in audit.models if other.name != model.name}
        for model, audit in ((new, now), (old, before))
    )
    return None if here == there else "the images were made for other models"


def _other_options(now: AuditResult, before: AuditResult) -> Difference:
    # A file of an earlier version says nothing of them.
    new, old = (_settings(result, "robustness").get("options") or {} for result in (now, before))
    return None if new == old else f"the options of the attacks were {old} there and are {new} here"


def other_instrument(
    metric: str, new: ModelResult, old: ModelResult, now: AuditResult, before: AuditResult
) -> Difference:
    """Return why `metric` of the model `new` in `now` is not what it is of `old` in `before`, or None."""
    name = new.label_of(metric)
    if name is not None:
        metric, now, before = metric.removeprefix(f"labels.{name}."), now.of_label(name), before.of_label(name)
        new, old = new.of_label(name), old.of_label(name)
    if metric.split(".")[0] in MEANINGFULNESS:
        found = _other_explanation(new, old, now, before) or _other_measure(metric, new, old, now, before)
        if found is not None:
            return found
    if metric.startswith("counterfactuals.nafr") and _copies(new) != _copies(old):
        return "its flips were shown to other copies"
    if (found := _other_images(now, before)) is not None:
        return found
    for part, section in (("reliance", "reliance"), ("attributions", "attribution")):
        if metric.startswith(f"{part}."):
            return _other_settings(now, before, section) or _other_seed(now, before)
    if metric.startswith("label_summary."):
        return _other_settings(now, before, "robustness") or _other_seed(now, before)
    if not metric.startswith("robust."):
        return None
    transferred = metric.startswith(("robust.transfers.", f"robust.attacks.{TRANSFER}"))
    if transferred and (found := _other_models(new, old, now, before)) is not None:
        return found
    attack, other = attack_of(new, metric), attack_of(old, metric)
    if attack is not None and other is not None and (found := _other_attack(attack, other, now, before)) is not None:
        return found
    part = metric.split(".")[1]
    if part == "shift":
        sizes = [None if m.robust.shift is None else m.robust.shift.n for m in (old, new)]
        return None if sizes[0] == sizes[1] else f"the second set had {sizes[0]} images there and {sizes[1]} here"
    if part == "corruptions":
        found_in = [m.robust.corruptions for m in (old, new)]
        lists = [None if corruptions is None else corruptions.constants for corruptions in found_in]
        if lists[0] != lists[1]:
            return f"the severities are those of {lists[0]} there and of {lists[1]} here"
    if part in ("distances", "corruptions", "vulnerability", "checks"):
        keys = {"distances": ("distance", "steps", "n"), "checks": ("trust", "steps", "n")}.get(part, (part, "n"))
        found = _other_options(now, before) or _other_settings(now, before, "robustness", keys)
        if found is not None:
            return found
    return _other_seed(now, before)
