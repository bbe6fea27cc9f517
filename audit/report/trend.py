"""A number over the audits of a series, as a small chart."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from audit.report.figures import DASHES, MARKERS

_LEFT, _RIGHT, _TOP, _BOTTOM = 40.0, 250.0, 8.0, 108.0


@dataclass(frozen=True)
class Point:
    """A number as share of the axis, with the ends of its interval; `joined`: a line leads to it from the last."""

    value: float
    low: float | None
    high: float | None
    joined: bool


def trend_chart(curves: Sequence[tuple[int, Sequence[Point | None]]], audits: int, top: str, label: str) -> Markup:
    """Return the chart of (number of the model, its points); audits are called by their numbers, from 1.

    Between audits whose numbers may not be compared there is no line.
    """
    step = (_RIGHT - _LEFT - 20) / max(audits - 1, 1)
    aside = min(6.0, step / 2 / max(len(curves), 1))
    parts = [
        f'<line class="grid" x1="{_LEFT:.0f}" x2="{_RIGHT:.0f}" y1="{y:.0f}" y2="{y:.0f}"/>'
        f'<text x="{_LEFT - 4:.0f}" y="{y + 4:.0f}" text-anchor="end">{escape(name)}</text>'
        for y, name in ((_TOP, top), (_BOTTOM, "0"))
    ]
    parts += [
        f'<text x="{_LEFT + 10 + step * i:.0f}" y="{_BOTTOM + 15:.0f}" text-anchor="middle">{i + 1}</text>'
        for i in range(audits)
    ]
    for place, (model, points) in enumerate(curves):
        shift = _LEFT + 10 + (place - (len(curves) - 1) / 2) * aside
        at = [None if point is None else (shift + step * i, _height(point.value)) for i, point in enumerate(points)]
        parts.append(f'<g class="curve c{model % 6}">')
        for i, point in enumerate(points):
            here, before = at[i], at[i - 1] if i else None
            if point is None or here is None:
                continue
            if point.joined and before is not None:
                parts.append(_line(before, here, _style(model)))
            if point.low is not None and point.high is not None:
                parts.append(
                    f'<line class="reach" x1="{here[0]:.1f}" x2="{here[0]:.1f}" y1="{_height(point.low):.1f}" '
                    f'y2="{_height(point.high):.1f}"/>'
                )
            parts.append(_marker(here, _style(model)))
        parts.append("</g>")
    head = f'<svg class="trend" viewBox="0 0 258 126" role="img" aria-label="{escape(label)}">'
    return Markup(f"{head}{''.join(parts)}</svg>")  # noqa: S704 - numbers, and a label that is escaped


def swatch(model: int) -> Markup:
    """Return how the model of that number is drawn, for a legend."""
    style = _style(model)
    drawn = _line((1, 6), (29, 6), style) + _marker((15, 6), style)
    head = f'<svg class="key curve c{model % 6}" viewBox="0 0 30 12" width="30" height="12" aria-hidden="true">'
    return Markup(f"{head}{drawn}</svg>")  # noqa: S704 - numbers


def _style(model: int) -> int:
    # A seventh model has the first one's colour, but neither its dashes nor its marker.
    return (model + model // 6) % 6


def _height(share: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * min(max(share, 0.0), 1.0)


def _line(start: tuple[float, float], end: tuple[float, float], style: int) -> str:
    points = f"{start[0]:.1f},{start[1]:.1f} {end[0]:.1f},{end[1]:.1f}"
    return f'<polyline points="{points}" stroke-dasharray="{DASHES[style] or "none"}"/>'


def _marker(at: tuple[float, float], style: int) -> str:
    return f'<path class="marker" transform="translate({at[0]:.1f} {at[1]:.1f})" d="{MARKERS[style]}"/>'
