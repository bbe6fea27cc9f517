"""The report's reliability diagrams: how often a model is right by how sure it is (Niculescu-Mizil & Caruana 2005)."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from audit.report.text import percent, percent_bounds
from audit.results import ConfidenceBin, ModelResult

_LEFT, _TOP, _SIDE, _GAP, _COUNTS = 40, 8, 150, 16, 34
"""Place and side of the diagram, and gap and height of the histogram below it, in units of the view box."""


def calibrated(models: Sequence[ModelResult]) -> list[ModelResult]:
    """Return the models of which it is known how sure they are; results of earlier versions do not say it."""
    return [model for model in models if model.clean.confidence_bins]


def diagram(bins: Sequence[ConfidenceBin], label: str) -> Markup:
    """Return accuracy with its interval over mean confidence, beside the diagonal, and below the number of images."""
    most = max(one.accuracy.n for one in bins)
    foot = _TOP + _SIDE + _GAP + _COUNTS
    parts = [
        f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _SIDE}" y1="{_y(tick):.0f}" y2="{_y(tick):.0f}"/>'
        f'<text x="{_LEFT - 4}" y="{_y(tick) + 4:.0f}" text-anchor="end">{text}</text>'
        f'<text x="{_x(tick):.0f}" y="{foot + 12}" text-anchor="middle">{text}</text>'
        for tick, text in ((0.0, "0"), (0.5, "50"), (1.0, "100 %"))
    ]
    parts.append(f'<line class="ideal" x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}"/>')
    for one in bins:
        height = _COUNTS * one.accuracy.n / most
        parts.append(
            f'<rect class="count" x="{_x(one.low) + 0.5:.1f}" width="{_x(one.high) - _x(one.low) - 1:.1f}" '
            f'y="{foot - height:.1f}" height="{height:.1f}"/>'
        )
        if one.accuracy.value is None:
            continue
        x = _x(one.confidence)
        if one.accuracy.low is not None and one.accuracy.high is not None:
            ends = f'y1="{_y(one.accuracy.low):.1f}" y2="{_y(one.accuracy.high):.1f}"'
            parts.append(f'<line class="reach" x1="{x:.1f}" x2="{x:.1f}" {ends}/>')
        parts.append(
            f'<circle cx="{x:.1f}" cy="{_y(one.accuracy.value):.1f}" r="3"><title>{escape(_told(one))}</title></circle>'
        )
    parts.append(f'<text x="{_LEFT - 4}" y="{foot - _COUNTS + 9}" text-anchor="end">{most}</text>')
    return Markup(
        f'<svg class="reliability" viewBox="0 0 {_LEFT + _SIDE + 22} {foot + 16}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _x(share: float) -> float:
    return _LEFT + _SIDE * share


def _y(share: float) -> float:
    return _TOP + _SIDE * (1 - share)


def _told(one: ConfidenceBin) -> str:
    right = f"{percent(one.accuracy.value)} {percent_bounds(one.accuracy)}".strip()
    return f"{percent(one.confidence)} sure, {right} right, {one.accuracy.n} images"
