"""The report's tables of robustness: attacks, numbers that failed a trust check, corruptions, vulnerability."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from markupsafe import Markup

from audit.report.text import finite, in_order, names
from audit.results import (
    ATTACK_TITLES,
    ENSEMBLE,
    NORMS,
    PGD,
    AdversarialExample,
    Attack,
    AuditResult,
    Difference,
    Interval,
    ModelResult,
    Norm,
    RegionShare,
    Robust,
    TrustCheck,
    Vulnerability,
    attack_path,
)

MOST_REASONS = 2
"""Reasons of distrust that are told before the numbers."""


class HasRobust(Protocol):
    """A model, or one label of a multi-label model."""

    robust: Robust


@dataclass(frozen=True)
class Column:
    """One attack that at least one model met."""

    table: str
    attack_name: str
    norm: Norm
    title: str
    radius: str
    eps: float
    bounded: bool = True
    """Whether a norm bounds it; if not, what does stands as its radius."""

    @property
    def size(self) -> str:
        """How strong it is, in words."""
        return f"eps {self.radius}" if self.bounded else self.radius

    @property
    def metric(self) -> str:
        """Path of the number in a model's results."""
        return f"{self.table}.{self.radius}"

    @property
    def strength(self) -> int:
        """The ensemble before PGD, for PGD alone flatters; what any other attack is worth is not known."""
        return {ENSEMBLE: 2, PGD: 1}.get(self.attack_name, 0)

    def attack(self, model: HasRobust) -> Attack | None:
        """Return what `model` kept under this attack, None where it was not made."""
        tables = (table.radii for table in model.robust.tables() if table.path == self.table)
        return next(tables, {}).get(self.radius)


def stage_title(name: str) -> str:
    """Return the heading of a stage of the ensemble."""
    return ATTACK_TITLES.get(name, name)


def attack_columns(models: Sequence[HasRobust]) -> list[Column]:
    """Return the attacks, PGD and the ensemble first, then by radius."""
    tables = [table for model in models for table in model.robust.tables()]
    found = {
        Column(table.path, table.attack, table.norm, table.title, radius, attack.eps, attack.extent is None)
        for table in tables
        for radius, attack in table.radii.items()
    }
    own = [attack_path(attack, norm) for norm in NORMS for attack in (PGD, ENSEMBLE)]
    order = list(dict.fromkeys([*own, *(table.path for table in tables)]))
    return sorted(found, key=lambda column: (order.index(column.table), column.eps))


def headline_columns(models: Sequence[HasRobust]) -> list[Column]:
    """Return one attack for each L-inf radius: the ensemble where it was made, for PGD alone flatters; else PGD.

    Where there is no L-inf radius, those of L2. An attack that no norm bounds stands there only if no other was made.
    """
    columns = attack_columns(models)
    bounded = [column for column in columns if column.bounded]
    return _strongest([column for column in bounded if column.norm == "Linf"] or bounded or columns, models)


def weight(column: Column, models: Sequence[HasRobust]) -> tuple[int, float]:
    """Return what sorts the attacks of one radius: their strength, and of equally strong ones what they bring down."""
    attacks = [attack for model in models if (attack := column.attack(model)) is not None]
    kept = [value for attack in attacks if (value := attack.robust_accuracy.value) is not None and finite(value)]
    return column.strength, -sum(kept) / len(kept) if kept else -1.0


def _strongest(columns: Sequence[Column], models: Sequence[HasRobust]) -> list[Column]:
    # The strongest comes last and takes the place of the others.
    best = {column.radius: column for column in sorted(columns, key=lambda column: weight(column, models))}
    return sorted(best.values(), key=lambda column: column.eps)


def strongest_columns(models: Sequence[HasRobust]) -> list[Column]:
    """Return one attack for each radius of either norm, L-inf first: the ensemble where it was made, else PGD."""
    return headline_columns(models) + _strongest([one for one in attack_columns(models) if one.norm == "L2"], models)


def accuracy_curves(models: Sequence[ModelResult]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Return clean accuracy and the headline's robust accuracies of every model, as points of a chart."""
    curves = []
    for model in models:
        pairs: list[tuple[str, float | None]] = [("clean", model.clean.accuracy.value)]
        for column in headline_columns(models):
            attack = column.attack(model)
            pairs.append((column.radius, None if attack is None else attack.robust_accuracy.value))
        curves.append((model.name, [(name, value) for name, value in pairs if value is not None and finite(value)]))
    return curves


def check_names(models: Sequence[ModelResult]) -> list[str]:
    """Return the names of the trust checks in the order in which they were made."""
    return list(dict.fromkeys(check.name for model in models for check in model.robust.checks))


def check_of(model: ModelResult, name: str) -> TrustCheck | None:
    """Return one trust check of a model, or None."""
    return next((check for check in model.robust.checks if check.name == name), None)


def doubts(models: Sequence[ModelResult]) -> list[tuple[str, TrustCheck]]:
    """Return (model, check) of every trust check that failed or could not be made."""
    return [(model.name, check) for model in models for check in model.robust.checks if check.passed is not True]


def distrust(result: AuditResult) -> list[Markup]:
    """Return a sentence for every model whose numbers failed a check: to be read before any number.

    The first reasons stand in it; all of them are at each number.
    """
    notes = []
    for model in in_order(result):
        by_title = {table.title: _reasons(table.radii.values()) for table in model.robust.tables()}
        reasons = list(dict.fromkeys(reason for found in by_title.values() for reason in found))
        if reasons:
            more = len(reasons) - MOST_REASONS
            rest = Markup(' <a href="#trust">{} more reason{}</a>.').format(more, "s" if more > 1 else "")
            notes.append(
                Markup("<strong>The robust accuracy of {} under {} is untrusted.</strong> {}{}").format(
                    model.name,
                    " and ".join(title for title, found in by_title.items() if found),
                    " ".join(reasons[:MOST_REASONS]),
                    rest if more > 0 else "",
                )
            )
    return notes + _unchecked(in_order(result))


def _reasons(attacks: Iterable[Attack]) -> list[str]:
    return list(dict.fromkeys(reason for attack in attacks for reason in attack.untrusted))


def _unchecked(models: Sequence[ModelResult]) -> list[Markup]:
    """Return a sentence for the models whose robust accuracy nobody checked."""
    attacked = [m for m in models if m.robust.tables()]
    missed = [m for m in attacked if m.robust.trusted is None]
    if not missed:
        return []
    who = "every model" if len(missed) == len(attacked) > 1 else names(missed)
    what = "No trust check was made" if not any(m.robust.checks for m in missed) else "Not every trust check was made"
    return [
        Markup("{} of the robust accuracy of {}: an attack that saw no gradient would leave as high a number.").format(
            what, who
        )
    ]


def cascades(models: Sequence[ModelResult]) -> Iterator[tuple[str, Column, Attack]]:
    """Yield (model, column, attack) of every cascade."""
    for column in attack_columns(models):
        for model in models:
            attack = column.attack(model)
            if attack is not None and attack.stages:
                yield model.name, column, attack


MEANINGS = {
    "batch-dependence": "change of an image's logits with the other images of its batch, as a share of their range",
    "one-class": "share of images that are answered by one and the same class",
    "blind-attack": "share of images on which no attack ever had a gradient",
    "randomised-forward": "difference between forwards of the same images, as a share of the logits' range",
    "softmax-output": "share of outputs that are probabilities and no logits",
    "zero-gradients": "share of images without a usable gradient",
    "saturated-loss": "share of images that PGD fools on rescaled logits only",
    "black-box-beats-white-box": "share of images that Square fools and PGD does not",
    "large-eps": "share of images that stand where every image can become grey",
    "more-steps": "share of images that only more steps fool",
    "bounds": "how far adversarial images leave their ball or [0, 1], in pixel units",
    "ensemble-beats-pgd": "share of images that the ensemble fools and PGD does not",
}
"""What the number of each trust check is."""


def radius_text(check: TrustCheck, models: Sequence[ModelResult]) -> str:
    """Return a check's radius as the configuration writes it, or in 255ths where these are whole, or as a number."""
    if check.eps is None:
        return ""
    l2 = check.norm == "L2"
    columns = [column for column in attack_columns(models) if column.norm == check.norm and column.bounded]
    written = {column.eps: column.radius for column in columns}
    levels = 255 * check.eps
    whole = not l2 and abs(levels - round(levels)) < 1e-6
    text = written.get(check.eps) or (f"{levels:.0f}/255" if whole else f"{check.eps:g}")
    return f"{text} in L2" if l2 else text


def distance_text(example: AdversarialExample) -> str:
    """Return how small the perturbation of a fragile image is: in L-inf in 255ths as well."""
    distance = example.distance or 0.0
    norm = example.metric.rpartition(".")[2]
    return f"{distance:.4f} in L-inf ({255 * distance:.2f}/255)" if norm == "Linf" else f"{distance:.3f} in {norm}"


def counts(numbers: Iterable[int]) -> str:
    """Return '500 images', or '100 to 500 images' where they differ; '' for none."""
    found = sorted(set(numbers))
    if not found:
        return ""
    span = f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"
    return f"{span} image{'' if found == [1] else 's'}"


def column_counts(column: Column, models: Sequence[ModelResult]) -> str:
    """Return on how many images an attack was made."""
    return counts(attack.robust_accuracy.n for m in models if (attack := column.attack(m)) is not None)


def difference_of(result: AuditResult, a: str, b: str, metric: str) -> Interval | None:
    """Return the paired difference `a` minus `b` in `metric`, turned round where it was stored the other way."""
    for row in result.differences:
        if row.metric == metric and (row.a, row.b) == (a, b):
            return row.difference
        if row.metric == metric and (row.b, row.a) == (a, b):
            return _negative(row.difference)
    return None


def _negative(interval: Interval) -> Interval:
    def minus(value: float | None) -> float | None:
        return None if value is None else -value

    return interval.model_copy(
        update={"value": minus(interval.value), "low": minus(interval.high), "high": minus(interval.low)}
    )


def difference_metrics(differences: Sequence[Difference]) -> list[str]:
    """Return the metrics that models were compared in, in their order."""
    return list(dict.fromkeys(row.metric for row in differences))


def metric_title(metric: str, models: Sequence[ModelResult]) -> str:
    """Return the heading of a metric's path: 'robust.pgd.8/255' is 'PGD 8/255'."""
    of_attacks = {column.metric: f"{column.title} {column.radius}" for column in attack_columns(models)}
    named = {"clean.accuracy": "clean", "robust.corruptions": "corruptions"}
    return of_attacks.get(metric) or named.get(metric, metric)


def metric_counts(metric: str, differences: Sequence[Difference]) -> str:
    """Return on how many images models were compared in a metric."""
    return counts(row.difference.n for row in differences if row.metric == metric and row.difference.n)


def signed_percent(interval: Interval) -> Markup:
    """Return a difference of two shares in percentage points with its sign and interval."""
    if not finite(interval.value):
        return Markup("\N{EN DASH}")
    ends = (interval.value, interval.low, interval.high)
    value, low, high = (f"{100 * (v or 0.0):+.1f}".replace("-", "\N{MINUS SIGN}") for v in ends)
    return Markup('<span class="value">{}</span> <span class="bounds">[{}, {}]</span>').format(value, low, high)


def corruption_names(models: Sequence[ModelResult]) -> list[str]:
    """Return the corruptions that were measured, in their order."""
    return list(
        dict.fromkeys(row.name for m in models if m.robust.corruptions for row in m.robust.corruptions.corruptions)
    )


LISTS = {"imagenet-c": "ImageNet-C", "cifar-c": "CIFAR-10-C"}


def corruption_lists(models: Sequence[ModelResult]) -> list[str]:
    """Return the published lists that the severities were taken from."""
    return list(dict.fromkeys(LISTS[m.robust.corruptions.constants] for m in models if m.robust.corruptions))


def corruption_mean(model: ModelResult, name: str) -> float | None:
    """Return a model's mean accuracy over the severities of one corruption."""
    rows = model.robust.corruptions.corruptions if model.robust.corruptions else []
    return next((row.mean for row in rows if row.name == name), None)


def severity_levels(model: ModelResult) -> list[int]:
    """Return the severities that a model met, the mildest first."""
    rows = model.robust.corruptions.corruptions if model.robust.corruptions else []
    return sorted({level for row in rows for level in row.accuracy})


def vulnerability_curves(models: Sequence[ModelResult]) -> list[tuple[str, list[tuple[str, float]]]]:
    """Return accuracy by share of the attack that is kept, as points of a chart."""
    return [
        (
            model.name,
            [
                (f"{100 * row.share:g} %", row.accuracy.value)
                for row in sorted(model.robust.vulnerability.shares, key=lambda row: row.share)
                if row.accuracy.value is not None
            ],
        )
        for model in models
        if model.robust.vulnerability is not None
    ]


def map_region(vulnerability: Vulnerability, name: str) -> RegionShare | None:
    """Return how much of a vulnerability map lies in the region `name`, or None."""
    return next((row for row in vulnerability.regions if row.region == name), None)
