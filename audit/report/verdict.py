"""The headline of the report: one sentence on the outcome that claims no more than the numbers support.

A model is named as the best only where it is above every other by more than chance (a paired difference, or intervals
that do not meet), where its number has passed its checks, and where it classifies better than guessing. Models whose
accuracy an attack takes away are named first.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from audit.report.robustness import Column, attack_columns, difference_of, stage_title, weight
from audit.report.text import (
    bounds,
    finite,
    in_order,
    is_ranked,
    names,
    number,
    percent,
    region_of,
    wrong_region,
)
from audit.results import COMPONENTS, ENSEMBLE, MAIN_REGION, Attack, AuditResult, Interval, ModelResult

NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
FALLEN = 0.5
"""A model falls where an attack leaves less than this share of its clean accuracy."""
WEAK_BESIDE_OTHERS, WEAK = 0.75, 0.5
"""A model is weak where its clean accuracy is less than this share of the best one's, or less than this at all."""
_SPACE = "\N{NO-BREAK SPACE}"


def verdict(result: AuditResult) -> Markup:
    """Return the outcome of the audit in one sentence, model names in bold."""
    ranked = [model for model in in_order(result) if is_ranked(model)]
    return _ranked_verdict(result, ranked) if ranked else _robust_verdict(result)


def one_class(model: ModelResult, result: AuditResult) -> str | None:
    """Return the class that a model answers to every image, '' if it is not known which; None for any other model."""
    rows = model.clean.confusion
    if rows is not None and sum(any(row) for row in rows) > 1:
        answered = [name for name, column in zip(result.classes, zip(*rows, strict=True), strict=False) if any(column)]
        return answered[0] if len(answered) == 1 else None
    noticed = any(notice.subject == model.name and notice.kind == "one-class" for notice in result.notices)
    return "" if noticed else None


def guesses(model: ModelResult, result: AuditResult) -> bool:
    """Say whether a model classifies no better than guessing, as far as its images can tell.

    Any answer that does not depend on the image has a mean recall of one over the classes; accuracy would flatter a
    model that answers the commonest class. The interval of the mean joins those of the classes as Newcombe 1998 does.
    """
    if one_class(model, result) is not None:
        return True
    rows = [(row[k], sum(row)) for k, row in enumerate(model.clean.confusion or []) if sum(row)]
    if len(rows) > 1:
        below = sum((hits / n - _wilson_low(hits, n)) ** 2 for hits, n in rows) ** 0.5
        return (sum(hits / n for hits, n in rows) - below) / len(rows) <= 1 / len(rows)
    accuracy = model.clean.accuracy
    least = accuracy.low if finite(accuracy.low) else accuracy.value
    return finite(least) and len(result.classes) > 1 and (least or 0.0) <= 1 / len(result.classes)


def _wilson_low(hits: int, n: int, z: float = 1.96) -> float:
    share = hits / n
    spread = z * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max((share + z**2 / (2 * n) - spread) / (1 + z**2 / n), 0.0)


def guessing_note(model: ModelResult, result: AuditResult) -> Markup:
    """Return a sentence on a model that `guesses`."""
    answer = one_class(model, result)
    clean = percent(model.clean.accuracy.value)
    if answer:
        return Markup("{} answers “{}” to every image ({} of them rightly).").format(names([model]), answer, clean)
    if answer is not None:
        return Markup("{} answers one class to every image ({} of them rightly).").format(names([model]), clean)
    known = f"as far as {model.clean.n} images can tell ({clean}, {len(result.classes)} classes)"
    return Markup("{} classifies no better than guessing would, {}.").format(names([model]), known)


def cautions(result: AuditResult) -> list[Markup]:
    """Return a sentence on every model that failed half-way or that only guesses, unless a trust check tells it."""
    told = {m.name for m in result.models if any(c.name == "one-class" and c.passed is False for c in m.robust.checks)}
    poor = [model for model in in_order(result) if guesses(model, result) and model.name not in told]
    return unfinished(result) + [guessing_note(model, result) for model in poor]


def unfinished(result: AuditResult) -> list[Markup]:
    """Return a sentence on every model that failed half-way."""
    return [
        Markup("<strong>{} could not be audited to the end.</strong> {}: {}").format(
            model.name, model.failed.stage.capitalize(), model.failed.why
        )
        for model in in_order(result)
        if model.failed is not None
    ]


@dataclass(frozen=True)
class Shown:
    """One model under the attack that the sentence is about."""

    model: ModelResult
    attack: Attack

    @property
    def unchecked(self) -> bool:
        return bool(self.attack.unchecked) or self.model.robust.trusted is None

    @property
    def robust(self) -> float:
        return self.attack.robust_accuracy.value or 0.0

    @property
    def clean(self) -> float:
        return self.model.clean.accuracy.value or 0.0


def _robust_verdict(result: AuditResult) -> Markup:
    column = told_column(result)
    if column is None:
        return Markup("Neither counterfactuals nor robust accuracy were computed; the models are not ranked.")
    shown = [
        Shown(model, attack)
        for model in result.models
        if model.failed is None
        and (attack := column.attack(model)) is not None
        and finite(attack.robust_accuracy.value)
        and finite(model.clean.accuracy.value)
        and not model.unreliable
    ]
    fit = [one for one in shown if not guesses(one.model, result)]
    sound = [one for one in fit if not one.attack.untrusted]
    place = f"under {_attack_name(column)} {'at' if column.bounded else 'of'} {column.size.replace(' ', _SPACE)}"
    best, rivals = _best(sound, result, column)
    fallen = [one for one in fit if _falls(one)]
    leading = [] if best is None or best in fallen else [best, *rivals]
    fallen = [one for one in fallen if one not in leading]
    parts = []
    if fallen:
        parts.append(_fall(fallen, len(result.models), f"{place} ({_images(fallen)})"))
        place = ""
    if leading:
        parts.append(_lead(leading, fit, place))
    if not parts:
        parts.append(_nothing_to_tell(shown, fit, place))
    whose = "they decide as they do" if len(result.models) > 1 else "it decides as it does"
    return Markup("; ").join(parts) + Markup(". Why {} was not examined.").format(whose)


def told_column(result: AuditResult) -> Column | None:
    """Return the attack that most models met; L-inf before L2, the largest radius first, the ensemble before PGD.

    One that no norm bounds comes last. Of one radius it is the one that the table of all models shows.
    """
    models = [model for model in result.models if model.failed is None]

    def order(column: Column) -> tuple[bool, bool, int, float, tuple[int, float]]:
        attacks = [column.attack(model) for model in models]
        met = sum(attack is not None and finite(attack.robust_accuracy.value) for attack in attacks)
        return (column.bounded, column.norm == "Linf", met, column.eps, weight(column, result.models))

    columns = [column for column in attack_columns(result.models) if order(column)[2]]
    return max(columns, key=order, default=None)


def _attack_name(column: Column) -> str:
    name = "the ensemble" if column.attack_name == ENSEMBLE else stage_title(column.attack_name)
    return f"{name} in L2" if column.norm == "L2" else name


def _falls(one: Shown) -> bool:
    """Say whether the attack takes most of a model's accuracy, beyond chance.

    A number that failed a check is over-stated, so the fall is certain all the same; not so where an adversarial image
    left its ball.
    """
    broken = any(check.name == "bounds" and check.passed is False for check in one.model.robust.checks)
    clear = _clearly_above(one.model.clean.accuracy, one.attack.robust_accuracy)
    return clear and not broken and one.robust < FALLEN * one.clean


def _clearly_above(a: Interval, b: Interval) -> bool:
    if a.low is None or b.high is None or not (finite(a.low) and finite(b.high)):
        return False
    return a.low > b.high


def _best(sound: Sequence[Shown], result: AuditResult, column: Column) -> tuple[Shown | None, list[Shown]]:
    """Return the model that keeps most and those that it is not above by more than chance."""
    if not sound:
        return None, []
    best = max(sound, key=lambda one: one.robust)
    metric = column.metric

    def above(other: Shown) -> bool:
        paired = difference_of(result, best.model.name, other.model.name, metric)
        if paired is not None and paired.low is not None and finite(paired.low):
            return paired.low > 0 and best.robust > other.robust
        return _clearly_above(best.attack.robust_accuracy, other.attack.robust_accuracy)

    return best, [one for one in sound if one is not best and not above(one)]


def _fall(fallen: Sequence[Shown], total: int, place: str) -> Markup:
    """Say which models fall; those that are far less accurate than the others without an attack are told apart."""
    most = max(one.clean for one in fallen)
    weak = [one for one in fallen if one.clean < WEAK_BESIDE_OTHERS * most]
    others = [one for one in fallen if one not in weak]
    who = names([one.model for one in others]) if len(others) < 3 else escape(_count(others, total).capitalize())
    text = Markup("{} {} {} {}").format(who, "falls" if len(others) == 1 else "fall", _from_to(others), place)
    if not weak:
        return text
    who = names([one.model for one in weak]) if len(weak) < 3 else escape(_count(weak, total))
    return text + Markup(", and {} {}").format(who, _from_to(weak))


def _count(some: Sequence[Shown], total: int) -> str:
    return f"all {_word(total)} models" if len(some) == total else f"{_word(len(some))} of {_word(total)} models"


def _from_to(fallen: Sequence[Shown]) -> str:
    if len(fallen) == 1:
        return f"from {percent(fallen[0].clean)} to {percent(fallen[0].robust)}"
    return f"from {_span([one.clean for one in fallen])} to {_span([one.robust for one in fallen])}"


def _lead(leading: Sequence[Shown], fit: Sequence[Shown], place: str) -> Markup:
    """Say what the best keeps; it is called the highest only where it is alone, and where it classifies well itself."""
    best = leading[0]
    who = names([one.model for one in leading])
    after = f" {place}" if place else ""
    counted = f", {_images(leading)}" if place else ""
    if len(leading) > 1:
        which = "the difference is within chance" if len(leading) == 2 else "which is highest cannot be told"
        kept, clean = (_span([getattr(one, kind) for one in leading]) for kind in ("robust", "clean"))
        if min(one.clean for one in leading) < WEAK_BESIDE_OTHERS * max(one.clean for one in leading):
            clean = ", ".join(percent(one.clean) for one in leading)
        return Markup("{} keep {}{} (clean {}{}): {}").format(who, kept, after, clean, counted, which)
    value = f"{percent(best.robust)}{_SPACE}{_percents(best.attack.robust_accuracy)}".rstrip(_SPACE)
    others = [one for one in fit if one is not best]
    most = max((one.clean for one in others), default=0.0)
    if best.clean < max(WEAK, WEAK_BESIDE_OTHERS * most):
        against = f", against {percent(most)}" if most > best.clean else ""
        return Markup("{} keeps {}{}, but classifies only {} of the clean images rightly{}").format(
            who, value, after, percent(best.clean), against
        )
    clean = f"(clean {percent(best.clean)}{counted})"
    unchecked = ", which not every check has confirmed" if best.unchecked else ""
    if not others:
        what = f"an accuracy of {value}{after} {clean}{unchecked}"
        return Markup("{} keeps {}").format(who, what)
    doubted = [one for one in others if one.attack.untrusted]
    what = "the only accuracy" if len(doubted) == len(others) else "the highest accuracy"
    believed = " that passed its checks" if doubted and not best.unchecked else ""
    return Markup("{} keeps {}{}{}: {} {}{}").format(who, what, believed, after, value, clean, unchecked)


def _nothing_to_tell(shown: Sequence[Shown], fit: Sequence[Shown], place: str) -> Markup:
    """Say why no number is told: nobody was measured, nobody classifies, or no number passed its checks."""
    if not shown:
        return Markup("No model has both a clean and a robust accuracy that may be believed")
    if not fit:
        return Markup("{} better than guessing would (clean {}), so accuracy {} says nothing").format(
            Markup("{} classifies no").format(names([shown[0].model])) if len(shown) == 1
            else escape(f"None of {_word(len(shown))} models classifies"),
            _span([one.clean for one in shown]), place,
        )  # fmt: skip
    return Markup("No accuracy {} can be believed: {} failed a trust check").format(
        place, Markup("that of {}").format(names([one.model for one in fit]))
    )


def _span(values: Sequence[float]) -> str:
    """Return the least and the greatest share in percent; a share that is not 0 or 1 is not rounded to it."""
    low, high = _short(min(values)), _short(max(values))
    return f"{low}{_SPACE}%" if low == high else f"{low}\N{EN DASH}{high}{_SPACE}%"


def _short(value: float) -> str:
    whole = f"{100 * value:.0f}"
    if (whole == "0" and value > 0) or (whole == "100" and value < 1):
        return f"{100 * value:.1f}" if 0.0005 <= value < 0.9995 else ("below 0.1" if value < 0.5 else "above 99.9")
    return whole


def _percents(interval: Interval) -> str:
    return bounds(interval.low, interval.high, 100, 0).replace(" ", _SPACE)


def _images(shown: Sequence[Shown]) -> str:
    counts = sorted({one.attack.robust_accuracy.n for one in shown})
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}\N{EN DASH}{counts[-1]}"
    return f"{span}{_SPACE}image{'' if counts == [1] else 's'}"


def _word(count: int) -> str:
    return NUMBERS[count] if count < len(NUMBERS) else str(count)


def _index(model: ModelResult) -> str:
    low, high = model.index_interval or (None, None)
    return f"{number(model.index, 0)} {bounds(low, high, digits=0)}".strip().replace(" ", _SPACE)


def _explain_last(last: ModelResult, best: ModelResult) -> str:
    """Return the most telling difference between the last model and the best."""
    if last.counterfactuals is not None and last.counterfactuals.unexplained is not None:
        return "no edit within the generator's range explains it"
    wrong = wrong_region(last)
    if wrong is not None:
        return f"{percent(wrong.mass, 0)} of its edit lies on the {wrong.region}"
    if last.veto is not None:
        return "its edits lie in a region that was named as a confounder"
    here, there = region_of(last, MAIN_REGION), region_of(best, MAIN_REGION)
    if here and there and here.mass is not None and there.mass is not None and here.mass < 0.75 * there.mass:
        return f"only {percent(here.mass, 0)} of its edit lies in the region, against {percent(there.mass, 0)}"
    gaps = {
        name: a - b
        for name in COMPONENTS
        if (a := getattr(best.components, name)) is not None and (b := getattr(last.components, name)) is not None
    }
    if not gaps or max(gaps.values()) <= 0:
        return ""
    name = max(gaps, key=lambda key: gaps[key])
    mine, other = getattr(last.components, name), getattr(best.components, name)
    return f"its {name} is {number(mine)}, against {number(other)}"


def _ranked_verdict(result: AuditResult, ranked: Sequence[ModelResult]) -> Markup:
    # A rank is no reason to set a model above one of equal index.
    leaders = [m for m in ranked if m.rank == ranked[0].rank or m.index == ranked[0].index]
    trailing = [m for m in ranked if m.rank == ranked[-1].rank or m.index == ranked[-1].index]
    if len(ranked) == 1:
        model = ranked[0]
        where = wrong_region(model) or region_of(model, MAIN_REGION)
        tail = ""
        if where is not None and where.mass is not None:
            place = "in the region that carries the class" if where.region == MAIN_REGION else f"on the {where.region}"
            tail = f": {percent(where.mass, 0)} of its edit lies {place}"
        return Markup("{} has a meaningfulness index of {} out of 100{}.").format(names(ranked), _index(model), tail)
    if max(model.index or 0.0 for model in ranked) < 0.5:
        return Markup("No counterfactuals are meaningful: the index of {} is 0 out of 100.").format(names(ranked))
    if any(m is other for m in leaders for other in trailing):
        return Markup(
            "{} cannot be told apart by the meaning of their counterfactuals (index\N{NO-BREAK SPACE}{})."
        ).format(names(ranked), ", ".join(_index(m) for m in ranked))
    if len(leaders) == 1:
        head = Markup("{} gives the most meaningful counterfactuals (index\N{NO-BREAK SPACE}{})").format(
            names(leaders), _index(leaders[0])
        )
    else:
        head = Markup(
            "{} give the most meaningful counterfactuals and share first place (index\N{NO-BREAK SPACE}{})"
        ).format(names(leaders), ", ".join(_index(m) for m in leaders))
    if any(m.unreliable for m in leaders):
        shaky = [m for m in leaders if m.unreliable]
        head += Markup(", but nothing measured of {} may be believed").format(
            "it" if len(leaders) == 1 else names(shaky)
        )
    poor = [m for m in leaders if guesses(m, result) and not m.unreliable]
    if poor:
        head += Markup(", but {} no better than guessing would").format(
            "it classifies" if len(leaders) == 1 else names(poor) + (" classifies" if len(poor) == 1 else " classify")
        )
    if len(trailing) > 1:
        return head + Markup("; {} share the last place.").format(names(trailing))
    why = _explain_last(trailing[0], leaders[0])
    return head + Markup("; {} is last{}.").format(names(trailing), f": {why}" if why else "")
