"""What a number of a model changed by between two audits, or why that cannot be said."""

from audit.gate.baseline import other_instrument
from audit.gate.evaluate import doubt_of_all
from audit.gate.policy import doubts_of, metrics_of
from audit.gate.significance import change
from audit.results import AuditResult, Interval, ModelResult


def between(metric: str, new: ModelResult, old: ModelResult, now: AuditResult, before: AuditResult) -> Interval | str:
    """Return the number at the path `metric`, of `new` in `now` less that of `old` in `before`, with its interval.

    Where it must not be compared: the end of a sentence that says why. The rule is the one that a gate with a baseline
    file goes by. Both audits have the number.
    """
    if (why := other_instrument(metric, new, old, now, before)) is not None:
        return why.rstrip(".")
    for model, where in ((old, "there"), (new, "here")):
        if (doubt := doubt_of_all(model)) is not None:
            return f"{where}, {doubt[:1].lower()}{doubt[1:].rstrip('.')}"
        if untrusted := doubts_of(model, metric).untrusted:
            return f"it is untrusted {where}: {untrusted[0].rstrip('.')}"
    found = change(metric, new, old, now, before)
    if found is not None:
        return Interval(value=found.value, low=found.low, high=found.high, n=found.n)
    here, there = (metrics_of(model)[metric].value or 0.0 for model in (new, old))
    return Interval(value=here - there)
