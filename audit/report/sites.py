"""The report's table of sites, of audits that were joined."""

from collections.abc import Sequence

from markupsafe import Markup

from audit.report.robustness import metric_title, signed_percent
from audit.report.text import bounds, finite, number, percent, percent_bounds
from audit.results import Interval, ModelResult, OverSites, Sites

DIFFER = 0.1
"""P-value of Cochran's Q below which sites are said to differ: the usual one, for the test has little power."""
_TITLES = {"clean.accuracy": "clean accuracy", "counterfactuals.flip_ratio": "flipped", "index": "index of 100"}


def by_model(sites: Sites) -> list[tuple[str, list[OverSites]]]:
    """Return the numbers of every model, and of every difference of two."""
    found: dict[str, list[OverSites]] = {}
    for row in sites.numbers:
        found.setdefault(row.model, []).append(row)
    return list(found.items())


def title(row: OverSites, models: Sequence[ModelResult]) -> str:
    """Return the heading of a number."""
    return _TITLES.get(row.metric) or metric_title(row.metric, models)


def shown(row: OverSites, interval: Interval | None) -> Markup:
    """Return a number as it is usually written: an index, a share, or a difference with its sign."""
    if interval is None or not finite(interval.value):
        return Markup("\N{EN DASH}")
    if "\N{MINUS SIGN}" in row.model:
        return signed_percent(interval)
    told = (
        (number(interval.value, 0), bounds(interval.low, interval.high, 1, 0))
        if row.metric == "index"
        else (percent(interval.value), percent_bounds(interval))
    )
    return Markup('<span class="value">{}</span> <span class="bounds">{}</span>').format(*told)


def summary(sites: Sites) -> str:
    """Say of how many numbers the sites differ by more than chance."""
    told = [row.p_value for row in sites.numbers if row.p_value is not None]
    differ = sum(p < DIFFER for p in told)
    return f"They differ by more than chance (p of Q below {DIFFER}) in {differ} of {len(told)} numbers."
