"""Joins audits of the same models that were made where their data lie: sums, and how far the sites differ.

Whatever counts images is summed, and so is as if all images had been audited at one place. Its interval knows that they
come from sites: it is the wider one of that of all images together and that of a site like these. An index is not
joined, for it compares models on the same images only; it stands in the table of sites.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import torch

from audit.errors import ResultsError
from audit.metrics.heterogeneity import RandomEffects, means_over_sites, shares_over_sites
from audit.metrics.intervals import wilson_interval
from audit.pipeline.sites.share import shared_settings
from audit.results import (
    MEANINGFULNESS,
    Attack,
    AuditResult,
    CascadeStage,
    Clean,
    Components,
    ConfidenceBin,
    Corruption,
    Corruptions,
    Difference,
    Environment,
    Failure,
    Interval,
    MinimalDistance,
    ModelResult,
    NotComputed,
    Notice,
    OverSites,
    Robust,
    Site,
    Sites,
    TrustCheck,
)
from audit.robustness.accuracy import scores_of_counts
from audit.robustness.distance import median_distance

_MAY_DIFFER = {"n", "batch_size", "bootstrap", "separation"}
"""Keys of settings that do not change what a number means: how many images, how many at a time, how many draws."""
_NO_INDEX = NotComputed(
    what="counterfactuals and index",
    why="an index compares models on the same images only, and is not joined over sites: the table of sites holds each",
    paths=list(MEANINGFULNESS),
)


@dataclass
class _Ledger:
    """The numbers of all models at every site, as they are joined."""

    rows: list[OverSites] = field(default_factory=list)

    def share(self, model: str, metric: str, sites: Mapping[str, Interval]) -> Interval:
        """Return the share of all images, with an interval that knows the sites; notes the sites' own."""
        shares = {name: one for name, one in sites.items() if one.n}
        hits = [round((one.value or 0.0) * one.n) for one in shares.values()]
        counts = [one.n for one in shares.values()]
        together = wilson_interval(sum(hits), sum(counts))
        found = shares_over_sites(hits, counts) if len(shares) > 1 else None
        self._note(model, metric, sites, found)
        return together if found is None else _wider(together, found[0])

    def mean(self, model: str, metric: str, sites: Mapping[str, Interval], least: float = 0.0) -> Interval:
        """Return the mean over all images of means over each site's images, from `least` to 1; notes the sites' own."""
        found = means_over_sites(list(sites.values()))
        if found is not None:  # a variance knows no bounds
            low, high = (min(max(end or 0.0, least), 1.0) for end in (found[0].low, found[0].high))
            found = found[0].model_copy(update={"low": low, "high": high}), found[1]
        self._note(model, metric, sites, found)
        n = sum(one.n for one in sites.values())
        value = sum(one.n * (one.value or 0.0) for one in sites.values()) / n if n else None
        return Interval(value=value, n=n) if found is None else _wider(found[0].model_copy(update={"value": value}))

    def _note(
        self, model: str, metric: str, sites: Mapping[str, Interval], found: tuple[Interval, RandomEffects] | None
    ) -> None:
        spread = {} if found is None else {key: getattr(found[1], key) for key in ("q", "p_value", "i2", "tau2")}
        across = None if found is None else found[0]
        self.rows.append(OverSites(model=model, metric=metric, by_site=dict(sites), across=across, **spread))


def _wider(first: Interval, *others: Interval) -> Interval:
    """Return `first` with an interval that reaches as far as any of them, and holds its value."""
    ends = [v for one in (first, *others) for v in (one.low, one.high, first.value) if v is not None]
    return first.model_copy(update={"low": min(ends), "high": max(ends)})


def merge(sites: Mapping[str, AuditResult]) -> AuditResult:
    """Return the audits of `sites`, by their names, as one; raises ResultsError where they cannot be joined."""
    _check(sites)
    first = next(iter(sites.values()))
    ledger = _Ledger()
    models = [
        _model({name: _named(one, model.name) for name, one in sites.items()}, first.classes, ledger)
        for model in first.models
    ]
    differences = _differences(list(sites.values()), list(sites), ledger)
    audited = {name: int(one.data.get("audited", 0)) for name, one in sites.items()}
    versions = {name: one.environment.versions.get("spruce-audit", "unknown") for name, one in sites.items()}
    return AuditResult(
        name=f"{first.name}, {len(sites)} sites",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        complete=all(one.complete for one in sites.values()),
        config=shared_settings(first),
        seed=first.seed,
        classes=first.classes,
        generator_sha256=first.generator_sha256,
        encoder_sha256=first.encoder_sha256,
        data={
            "source": ", ".join(sites),
            "audited": sum(audited.values()),
            "shape": first.data.get("shape"),
            **_images_of(sites),
        },
        sites=Sites(
            sites=[
                Site(name=name, n=audited[name], created=one.created, version=versions[name])
                for name, one in sites.items()
            ],
            numbers=ledger.rows,
        ),
        notices=_notices(versions),
        models=models,
        differences=differences,
        not_computed=[_NO_INDEX],
        environment=Environment(
            versions=first.environment.versions, device="that of each site", platform="that of each site"
        ),
    )


def _images_of(sites: Mapping[str, AuditResult]) -> dict[str, str]:
    """Return what tells the images of all sites from others; nothing where a site does not say which it audited."""
    keys = {name: one.data.get("audited_sha256") for name, one in sites.items()}
    if None in keys.values():
        return {}
    return {"audited_sha256": hashlib.sha256(json.dumps(keys, sort_keys=True).encode()).hexdigest()}


def _named(audit: AuditResult, name: str) -> ModelResult:
    return next(model for model in audit.models if model.name == name)


def _notices(versions: Mapping[str, str]) -> list[Notice]:
    if len(set(versions.values())) == 1:
        return []
    told = ", ".join(f"{name}: {version}" for name, version in versions.items())
    text = f"The sites were audited by several versions of spruce-audit ({told}): audit them again by one."
    return [Notice(subject="audit", kind="versions", text=text)]


def _check(sites: Mapping[str, AuditResult]) -> None:
    """Raise ResultsError, naming two sites and what differs, unless all measured the same thing on other images."""
    if len(sites) < 2:
        raise ResultsError("Sites are joined from two results files on: name those of further sites.")
    (name, first), *rest = sites.items()
    images = {first.data.get("audited_sha256"): name}
    for other, result in rest:
        if (why := _differs(first, result)) is not None:
            raise ResultsError(f"The audits of '{name}' and '{other}' cannot be joined: {why}.")
        key = result.data.get("audited_sha256")
        if key is not None and key in images:
            raise ResultsError(
                f"The audits of '{images[key]}' and '{other}' are of the same images, which would count twice: name "
                "each site once."
            )
        images[key] = other


def _differs(a: AuditResult, b: AuditResult) -> str | None:
    """Return what is not the same in two audits that has to be, as the end of a sentence."""
    if a.label_counts is not None or b.label_counts is not None:
        return "their images have several labels, and only audits of one class an image are joined"
    if a.sites is not None or b.sites is not None:
        return "one of them is of several sites already: name the results of the single sites"
    if a.classes != b.classes:
        return f"the classes are {', '.join(a.classes)} and {', '.join(b.classes)}"
    if a.data.get("shape") != b.data.get("shape"):
        return f"the images are of shape {a.data.get('shape')} and {b.data.get('shape')}"
    ours, theirs = ({model.name: model for model in one.models} for one in (a, b))
    if set(ours) != set(theirs):
        return f"the models are {', '.join(ours)} and {', '.join(theirs)}"
    for name, model in ours.items():
        other = theirs[name]
        if model.weights_sha256 is None or model.weights_sha256 != other.weights_sha256:
            return f"'{name}' has other weights, or it is not known which"
        if model.role != other.role:
            return f"'{name}' is the baseline in one of them only"
        if _input(model) != _input(other):
            return f"'{name}' was given its images in another way (size, channels, mean, std or classes)"
    if (a.generator_sha256, a.encoder_sha256) != (b.generator_sha256, b.encoder_sha256):
        return "they have another generator or encoder"
    if a.component_definitions != b.component_definitions:
        return "the index and its components are defined otherwise: audit both by one version"
    settings = [shared_settings(one) for one in (a, b)]
    sections = ("robustness", *(("counterfactual", "inversion", "ranking") if a.generator_sha256 else ()))
    for section in sections:
        left, right = (one.get(section) or {} for one in settings)
        for key in dict.fromkeys([*left, *right]):
            if key not in _MAY_DIFFER and left.get(key) != right.get(key):
                return f"{section}.{key} is {left.get(key)} and {right.get(key)}"
    return None


def _input(model: ModelResult) -> dict[str, Any]:
    """Return how a model was given its images, whoever said so."""
    return {} if model.input is None else model.input.model_dump(exclude={"weights", "origins"})


def _model(sites: Mapping[str, ModelResult], classes: Sequence[str], ledger: _Ledger) -> ModelResult:
    first = next(iter(sites.values()))
    missing: list[NotComputed] = []
    failed = {name: one.failed for name, one in sites.items() if one.failed is not None}
    model = ModelResult(
        name=first.name,
        role=first.role,
        rank=None,
        index=None,
        index_interval=None,
        components=Components(),
        weights_sha256=first.weights_sha256,
        source=first.source,
        input=first.input,
        failed=None
        if not failed
        else Failure(
            stage=next(iter(failed.values())).stage,
            why=" ".join(f"At {name}: {one.why}" for name, one in failed.items()),
        ),
        unreliable=[f"At {name}: {why}" for name, one in sites.items() for why in one.unreliable],
        clean=_clean({name: one.clean for name, one in sites.items()}, first.name, classes, ledger),
        robust=_robust({name: one.robust for name, one in sites.items()}, (first.name, classes), ledger, missing),
        not_computed=missing,
    )
    explained = {name: one.counterfactuals for name, one in sites.items() if one.counterfactuals is not None}
    if len(explained) == len(sites):
        ledger.share(
            first.name, "counterfactuals.flip_ratio", {name: one.flip_ratio for name, one in explained.items()}
        )
    indices = {name: one.index for name, one in sites.items()}
    if any(value is not None for value in indices.values()):
        ends = {name: one.index_interval or (None, None) for name, one in sites.items()}
        by_site = {name: Interval(value=indices[name], low=ends[name][0], high=ends[name][1]) for name in sites}
        ledger.rows.append(OverSites(model=first.name, metric="index", by_site=by_site, across=None))
    return model


def _confusion(sites: Sequence[Any], classes: Sequence[str]) -> dict[str, Any]:
    """Return the sum of the sites' confusion matrices with what follows from it; nothing where one has none."""
    k = len(classes)
    found = [one.confusion for one in sites]
    if any(one is None or len(one) != k for one in found):
        return {}
    return scores_of_counts(torch.tensor(found, dtype=torch.int64).sum(dim=0), classes)


def _clean(sites: Mapping[str, Clean], model: str, classes: Sequence[str], ledger: _Ledger) -> Clean:
    scores = _confusion(list(sites.values()), classes)
    rows = scores.get("confusion") or [[0] * len(classes) for _ in classes]
    bins = _bins([one.confidence_bins for one in sites.values() if one.n])
    n = sum(one.n for one in sites.values())
    return Clean(
        accuracy=ledger.share(model, "clean.accuracy", {name: one.accuracy for name, one in sites.items()}),
        recall={
            c: row[i] / sum(row) if sum(row) else None for i, (c, row) in enumerate(zip(classes, rows, strict=True))
        },
        ece=sum(b.accuracy.n * abs(b.confidence - (b.accuracy.value or 0.0)) for b in bins) / n if bins else None,
        n=n,
        confidence_bins=bins,
        misclassified=_misclassified(sites),
        **scores,
    )


def _misclassified(sites: Mapping[str, Clean]) -> list[str] | None:
    """Return the ids of all sites, each with its site before it; None where one does not share them."""
    if any(one.misclassified is None for one in sites.values()):
        return None
    return [f"{name}/{image}" for name, one in sites.items() for image in one.misclassified or ()]


def _bins(sites: Sequence[Sequence[ConfidenceBin]]) -> list[ConfidenceBin]:
    """Return the bins of all sites together; none where a site does not say them."""
    if not all(sites):
        return []
    by_ends: dict[tuple[float, float], list[ConfidenceBin]] = {}
    for one in (one for bins in sites for one in bins):
        by_ends.setdefault((one.low, one.high), []).append(one)
    joined = []
    for (low, high), bins in sorted(by_ends.items()):
        n = sum(one.accuracy.n for one in bins)
        hits = sum(round((one.accuracy.value or 0.0) * one.accuracy.n) for one in bins)
        confidence = sum(one.confidence * one.accuracy.n for one in bins) / n
        joined.append(ConfidenceBin(low=low, high=high, confidence=confidence, accuracy=wilson_interval(hits, n)))
    return joined


def _robust(
    sites: Mapping[str, Robust], which: tuple[str, Sequence[str]], ledger: _Ledger, missing: list[NotComputed]
) -> Robust:
    """Join what every site measured of the model and classes `which`; what one did not is noted in `missing`."""
    model, classes = which
    joined = Robust(trusted=_all_true([one.trusted for one in sites.values()]))
    tables = {name: {(t.path, r): a for t in one.tables() for r, a in t.radii.items()} for name, one in sites.items()}
    kinds = {(t.path, r): (t.attack, t.norm) for one in sites.values() for t in one.tables() for r in t.radii}
    for (path, radius), (attack, norm) in kinds.items():
        found = {name: table[(path, radius)] for name, table in tables.items() if (path, radius) in table}
        if len(found) < len(sites):
            missing.append(_not_everywhere(f"{path}.{radius}", set(sites) - set(found)))
            continue
        joined.table(attack, norm)[radius] = _attack(found, f"{path}.{radius}", (model, classes), ledger)
    joined.checks = _checks({name: one.checks for name, one in sites.items()})
    joined.distances = _distances({name: one.distances for name, one in sites.items()}, missing)
    corrupted = {name: one.corruptions for name, one in sites.items() if one.corruptions is not None}
    if len(corrupted) == len(sites):
        joined.corruptions = _corruptions(corrupted, model, ledger)
    elif corrupted:
        missing.append(_not_everywhere("robust.corruptions", set(sites) - set(corrupted)))
    return joined


def _all_true(values: Sequence[bool | None]) -> bool | None:
    return False if False in values else None if None in values else True


def _not_everywhere(path: str, lacking: set[str]) -> NotComputed:
    return NotComputed(what=path, why=f"not measured at {', '.join(sorted(lacking))}", paths=[path])


def _attack(sites: Mapping[str, Attack], metric: str, which: tuple[str, Sequence[str]], ledger: _Ledger) -> Attack:
    model, classes = which
    first = next(iter(sites.values()))
    stages = [
        CascadeStage(
            attack=rows[0].attack, attacked=sum(r.attacked for r in rows), standing=sum(r.standing for r in rows)
        )
        for rows in zip(*(one.stages for one in sites.values()), strict=False)
    ]
    recalls = {c: [one.recall[c] for one in sites.values() if c in one.recall] for c in classes}
    return Attack(
        robust_accuracy=ledger.share(model, metric, {name: one.robust_accuracy for name, one in sites.items()}),
        eps=first.eps,
        norm=first.norm,
        steps=first.steps,
        restarts=first.restarts,
        stages=stages,
        recall={c: _sum(found) for c, found in recalls.items() if len(found) == len(sites)},
        untrusted=[f"At {name}: {why}" for name, one in sites.items() for why in one.untrusted],
        unchecked=[f"At {name}: {why}" for name, one in sites.items() for why in one.unchecked],
        outcomes={f"{name}/{row}": by for name, one in sites.items() for row, by in one.outcomes.items()}
        if all(one.outcomes for one in sites.values())
        else {},
        source=first.source,
        extent=first.extent,
        **_confusion(list(sites.values()), classes),
    )


def _sum(shares: Sequence[Interval]) -> Interval:
    return wilson_interval(sum(round((one.value or 0.0) * one.n) for one in shares), sum(one.n for one in shares))


def _checks(sites: Mapping[str, Sequence[TrustCheck]]) -> list[TrustCheck]:
    """Return every check as failed where it failed at a site, and as made where it was made at all of them."""
    by_kind: dict[tuple[str, float | None, str], dict[str, TrustCheck]] = {}
    for name, checks in sites.items():
        for check in checks:
            by_kind.setdefault((check.name, check.eps, check.norm), {})[name] = check
    joined = []
    for found in by_kind.values():
        first = next(iter(found.values()))
        told = {name: one for name, one in found.items() if one.passed is not True}
        passed = _all_true([*(one.passed for one in found.values()), *[None] * (len(sites) - len(found))])
        values = [one.value for one in found.values() if one.value is not None]
        joined.append(
            first.model_copy(
                update={
                    "passed": passed,
                    "value": max(values, default=None),
                    "limit": first.limit if len({one.limit for one in found.values()}) == 1 else None,
                    "n": sum(one.n for one in found.values()),
                    "finding": " ".join(f"At {name}: {one.finding}" for name, one in (told or found).items()),
                }
            )
        )
    return joined


def _distances(sites: Mapping[str, Sequence[MinimalDistance]], missing: list[NotComputed]) -> list[MinimalDistance]:
    """Return the medians over the images of all sites, which take a row an image."""
    joined = []
    for path in dict.fromkeys(row.path for rows in sites.values() for row in rows):
        found = {name: row for name, rows in sites.items() for row in rows if row.path == path}
        largest = {row.largest for row in found.values()}
        if len(found) < len(sites) or len(largest) > 1 or not all(row.distances_by_image for row in found.values()):
            why = "the median takes the distances of single images, which not every site shares"
            missing.append(NotComputed(what=path, why=why, paths=[path]))
            continue
        rows = {f"{name}/{image}": d for name, row in found.items() for image, d in row.distances_by_image.items()}
        values = torch.tensor([torch.inf if d is None else d for d in rows.values()], dtype=torch.float64)
        first = next(iter(found.values()))
        joined.append(
            MinimalDistance(
                norm=first.norm,
                median=median_distance(values, first.largest),
                largest=first.largest,
                attack=first.attack,
                n=len(rows),
                standing=sum(row.standing for row in found.values()),
                distances_by_image=rows,
                untrusted=[f"At {name}: {why}" for name, row in found.items() for why in row.untrusted],
                unchecked=[f"At {name}: {why}" for name, row in found.items() for why in row.unchecked],
            )
        )
    return joined


def _corruptions(sites: Mapping[str, Corruptions], model: str, ledger: _Ledger) -> Corruptions:
    first = next(iter(sites.values()))
    rows = []
    for name in (row.name for row in first.corruptions):
        found = [row.accuracy for one in sites.values() for row in one.corruptions if row.name == name]
        accuracy = {level: _sum([one[level] for one in found]) for level in found[0] if all(level in o for o in found)}
        mean = sum(one.value or 0.0 for one in accuracy.values()) / len(accuracy)
        rows.append(Corruption(name=name, accuracy=accuracy, mean=mean))
    clean = [one.clean_accuracy for one in sites.values() if one.clean_accuracy is not None]
    return Corruptions(
        mean_accuracy=ledger.mean(model, "robust.corruptions", {n: one.mean_accuracy for n, one in sites.items()}),
        corruptions=rows,
        n=sum(one.n for one in sites.values()),
        clean_accuracy=_sum(clean) if len(clean) == len(sites) else None,
        constants=first.constants,
    )


def _differences(audits: Sequence[AuditResult], names: Sequence[str], ledger: _Ledger) -> list[Difference]:
    """Return the paired differences that every site has: their mean over sites, as each site's models met one set."""
    tables = [{(row.a, row.b, row.metric): row.difference for row in one.differences} for one in audits]
    joined = []
    for a, b, metric in tables[0]:
        if not all((a, b, metric) in table for table in tables):
            continue
        by_site = {name: table[(a, b, metric)] for name, table in zip(names, tables, strict=True)}
        difference = ledger.mean(f"{a} \N{MINUS SIGN} {b}", metric, by_site, least=-1.0)
        joined.append(Difference(a=a, b=b, metric=metric, difference=difference))
    return joined
