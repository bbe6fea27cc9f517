"""Pictures of the report as pure functions: arrays and numbers in, data URIs and inline SVG out.

The colour map of the edit maps is made here: lightness rises evenly from black to near white in OKLab (Ottosson 2020,
"A perceptual color space for image processing") while the hue turns from violet over red to yellow, so that twice the
brightness is twice the edit to the eye, in grey print too.
"""

import base64
import io
import math
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from audit.errors import ResultsError
from audit.results import EDIT_FULL_SCALE, AdversarialExample

_LARGEST_SIDE = 320
_LARGEST_PNG = 60_000


def read_image(folder: Path, name: str) -> Image.Image:
    """Open the image `name` inside `folder`; raises ResultsError if it is missing, broken or outside the folder."""
    try:
        file = (folder / name).resolve()
    except ValueError:  # a NUL in it
        raise ResultsError(f"Image '{name}' cannot be a file: run the audit again.") from None
    if not file.is_relative_to(folder.resolve()):
        raise ResultsError(f"Image '{name}' lies outside '{folder}': a report shows only images beside its results.")
    if not file.is_file():
        raise ResultsError(f"Image '{name}' is not in '{folder}': keep the images beside results.json, or run again.")
    try:
        with Image.open(file, formats=("PNG",)) as image:
            image.load()
            return image.copy()
    except Exception as error:  # noqa: BLE001 - damaged bytes fail in whatever way they like
        raise ResultsError(f"Image '{name}' in '{folder}' cannot be read ({error}): run the audit again.") from None


def file_uri(folder: Path, file: str) -> str:
    """Return the picture `file` of an audit's `folder` as data URI; raises ResultsError if it is not there."""
    return image_uri(read_image(folder, file))


def attacked_pictures(folder: Path, one: AdversarialExample) -> list[tuple[str, str]]:
    """Return the three pictures of an attacked image, each with what it shows."""
    files = {"Image": one.image, "Perturbation of": one.perturbation_image, "Attacked": one.adversarial_image}
    return [(file_uri(folder, file), what) for what, file in files.items()]


def image_uri(image: Image.Image) -> str:
    """Return an image as data URI: PNG; a large photograph is brought to 320 pixels and, if still big, WebP."""
    if image.mode not in ("L", "RGB", "P"):
        image = image.convert("RGB" if image.mode in ("RGBA", "CMYK", "YCbCr") else "L")
    if max(image.size) > _LARGEST_SIDE:
        image = image.copy()
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.LANCZOS)
    data, kind = _encode(image, "PNG", optimize=True), "png"
    if len(data) > _LARGEST_PNG:
        data, kind = _encode(image.convert("RGB"), "WEBP", quality=92), "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def framed_uri(image: Image.Image, box: tuple[int, int, int, int]) -> str:
    """Return an image as data URI, large enough to be looked at, with a frame around the pixels inside `box`."""
    grow = max(1, -(-192 // max(image.size)))
    large = image.convert("RGB").resize((image.width * grow, image.height * grow), Image.Resampling.NEAREST)
    left, top, right, bottom = (grow * side for side in box)
    width = max(2, max(large.size) // 96)
    edge = (left, top, min(right, large.width - 1), min(bottom, large.height - 1))
    ImageDraw.Draw(large).rectangle(edge, outline=(255, 190, 60), width=width)
    return image_uri(large)


def _encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@cache
def colour_map() -> NDArray[np.uint8]:
    """Return the 256 colours of the edit maps, [256, 3], dark to light."""
    t = np.linspace(0.0, 1.0, 256)
    lightness = 0.97 * t
    hue = np.deg2rad(285 + 178 * t)  # violet, magenta, red, orange, yellow
    direction = np.stack([np.cos(hue), np.sin(hue)])
    low, high = np.zeros(256), 0.19 * np.sin(np.pi * t) ** 0.6
    for _ in range(20):  # the largest chroma that sRGB can show at this lightness and hue
        middle = (low + high) / 2
        linear = _oklab_to_linear(np.stack([lightness, *(middle * direction)]))
        inside = ((linear >= 0) & (linear <= 1)).all(0)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    linear = np.clip(_oklab_to_linear(np.stack([lightness, *(low * direction)])), 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(encoded.T * 255).astype(np.uint8)


def _oklab_to_linear(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    to_cones = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    return np.asarray(to_rgb @ (to_cones @ lab) ** 3)


def common_scale(edits: Sequence[NDArray[np.uint8]]) -> float:
    """Return the one edit size that all maps show in the brightest colour: their 99.5 % quantile, rounded up.

    `edits` are 8-bit edit maps [H, W]; the result is a share of the pixel range.
    """
    counts = sum((np.bincount(edit.ravel(), minlength=256) for edit in edits), np.zeros(256, dtype=np.int64))
    top = np.searchsorted(np.cumsum(counts), 0.995 * counts.sum()) / 255 * EDIT_FULL_SCALE
    steps = (0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, EDIT_FULL_SCALE)
    return next((step for step in steps if step >= top), EDIT_FULL_SCALE)


def heat_uri(edit: NDArray[np.float64], scale: float) -> str:
    """Return an edit map [H, W] in units of the pixel range as data URI; `scale` and more is the brightest colour."""
    image = Image.fromarray(np.rint(np.clip(edit / scale, 0, 1) * 255).astype(np.uint8))
    if max(image.size) > _LARGEST_SIDE:
        image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE), Image.Resampling.BOX)
    image.putpalette(colour_map().tobytes())
    return image_uri(image)


def gradient_css() -> str:
    """Return the colour map as CSS gradient, for the legend."""
    stops = ", ".join(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in colour_map()[::15])
    return f"linear-gradient(90deg, {stops})"


def outline_path(mask: NDArray[np.bool_]) -> str:
    """Return the border of a mask [H, W] as SVG path along pixel edges, in units of pixels; '' for an empty mask."""
    padded = np.pad(mask, 1)
    across = padded[1:, 1:-1] != padded[:-1, 1:-1]  # [H + 1, W]: horizontal edges, row y lies on line y
    down = padded[1:-1, 1:] != padded[1:-1, :-1]  # [H, W + 1]: vertical edges, column x lies on line x
    parts = [f"M{a} {y}H{b}" for y, line in enumerate(across) for a, b in _runs(line)]
    parts += [f"M{x} {a}V{b}" for x, line in enumerate(down.T) for a, b in _runs(line)]
    return "".join(parts)


def _runs(line: NDArray[np.bool_]) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], line.astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def interval_bar(value: float, low: float | None, high: float | None, label: str, full: float = 100.0) -> Markup:
    """Return a track from 0 to `full` with the interval as band and the value as tick."""
    ends = [v if v is not None and np.isfinite(v) else value for v in (value, low, high)]
    x = [100 * min(max(v / full, 0.0), 1.0) for v in ends]
    return Markup(
        '<svg class="interval" viewBox="0 0 100 12" preserveAspectRatio="none" role="img" aria-label="{label}">'
        '<rect class="track" x="0" y="5" width="100" height="2"/>'
        '<rect class="band" x="{low:.1f}" y="2" width="{width:.1f}" height="8"/>'
        '<rect class="tick" x="{tick:.1f}" y="0" width="1.4" height="12"/></svg>'
    ).format(label=label, low=x[1], width=max(x[2] - x[1], 0.4), tick=min(max(x[0] - 0.7, 0), 98.6))


def interval_chart(rows: Sequence[tuple[str, float, float | None, float | None, int]], label: str) -> Markup:
    """Return indices of 0 to 100 with their intervals, one row a model, and a line between the tiers.

    Rows are (name, index, lower end, upper end, rank), best first.
    """
    if not rows:
        return Markup("")
    left = min(20 + _LETTER * max(len(name) for name, *_ in rows), 250.0)
    room = int((left - 10) / _LETTER)

    def x(value: float) -> float:
        return left + (620 - left) * min(max(value, 0.0), 100.0) / 100

    height = 20 * len(rows) + 26
    parts = [
        f'<line class="grid" x1="{x(tick):.0f}" x2="{x(tick):.0f}" y1="4" y2="{height - 20}"/>'
        f'<text x="{x(tick):.0f}" y="{height - 6}" text-anchor="middle">{tick}</text>'
        for tick in (0, 25, 50, 75, 100)
    ]
    for i, (name, value, low, high, rank) in enumerate(rows):
        y = 16 + 20 * i
        ends = [end if end is not None and np.isfinite(end) else value for end in (low, high)]
        if i and rank != rows[i - 1][4]:
            parts.append(f'<line class="between" x1="0" x2="620" y1="{y - 10}" y2="{y - 10}"/>')
        short = name if len(name) <= room else f"{name[: room - 1]}\N{HORIZONTAL ELLIPSIS}"
        parts.append(
            f'<text x="0" y="{y + 4}">{escape(short)}</text>'
            f'<line class="reach" x1="{x(ends[0]):.1f}" x2="{x(ends[1]):.1f}" y1="{y}" y2="{y}"/>'
            f'<circle cx="{x(value):.1f}" cy="{y}" r="3.6"/>'
        )
    return Markup(
        f'<svg class="tiers" viewBox="0 0 632 {height}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def share_bar(share: float, label: str, mark: float | None = None) -> Markup:
    """Return a bar of a share in [0, 1]; `mark` sets a tick, for instance where the share of the area lies."""
    tick = Markup("")
    if mark is not None and np.isfinite(mark):
        tick = Markup('<rect class="mark" x="{:.1f}" y="0" width="1.2" height="10"/>').format(
            min(max(100 * mark - 0.6, 0), 98.8)
        )
    return Markup(
        '<svg class="share" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<rect class="track" x="0" y="2" width="100" height="6"/>'
        '<rect class="fill" x="0" y="2" width="{:.1f}" height="6"/>{}</svg>'
    ).format(label, 100 * min(max(share, 0.0), 1.0) if np.isfinite(share) else 0.0, tick)


def _polyline(values: NDArray[np.float64], steps: int, css: str) -> str:
    keep = np.unique(np.linspace(0, len(values) - 1, min(len(values), 61)).round().astype(int))
    points = " ".join(f"{36 + 214 * i / steps:.1f},{8 + 100 * (1 - values[i]):.1f}" for i in keep)
    return f'<polyline class="{css}" points="{points}"/>'


def trace_chart(traces: Sequence[Sequence[float]], operating_point: float | None, label: str) -> Markup:
    """Return a line chart of the target's probability over steps: each image thin, their mean bold, the goal dashed."""
    lines = [np.clip(np.asarray(t, dtype=np.float64), 0, 1) for t in traces if len(t) > 1 and np.isfinite(t).all()]
    if not lines:
        return Markup("")
    steps = max(len(line) for line in lines) - 1
    # A trace that ended early keeps its last value, so that the mean stays one over all images.
    mean = np.mean([np.pad(line, (0, steps + 1 - len(line)), mode="edge") for line in lines], axis=0)
    grid = "".join(
        f'<line class="grid" x1="36" x2="250" y1="{y}" y2="{y}"/>'
        f'<text x="31" y="{y + 3.5}" text-anchor="end">{t}</text>'
        for y, t in ((8, "100 %"), (58, "50"), (108, "0"))
    )
    goal = "" if operating_point is None else _goal(operating_point)
    body = "".join(_polyline(line, steps, "one") for line in lines) + _polyline(mean, steps, "mean")
    axis = f'<text x="36" y="122">0</text><text x="250" y="122" text-anchor="end">{steps} steps</text>'
    return Markup(
        f'<svg class="trace" viewBox="0 0 258 126" role="img" aria-label="{escape(label)}">'
        f"{grid}{body}{goal}{axis}</svg>"
    )


def _goal(value: float) -> str:
    y = 8 + 100 * (1 - min(max(value, 0.0), 1.0))
    return f'<line class="goal" x1="36" x2="250" y1="{y:.1f}" y2="{y:.1f}"/>'


def spark_line(trace: Sequence[float], marks: tuple[int | None, int | None], goal: float | None, label: str) -> Markup:
    """Return one trace without axes: probability 0 to 1 over its steps, the goal dashed.

    `marks` are the steps of the flip (a line) and of the counterfactual (a dot); '' where there is nothing to draw.
    """
    line = np.clip(np.asarray(trace, dtype=np.float64), 0, 1)
    if len(line) < 2 or not np.isfinite(line).all():
        return Markup("")
    last = len(line) - 1
    keep = np.unique(np.linspace(0, last, min(last + 1, 61)).round().astype(int))
    points = " ".join(f"{120 * i / last:.0f},{30 - 28 * line[i]:.0f}" for i in keep)
    flip, chosen = (None if step is None else 120 * min(max(step, 0), last) / last for step in marks)
    parts = ['<line class="grid" x1="0" x2="120" y1="30" y2="30"/>']
    if goal is not None and np.isfinite(goal):
        y = 30 - 28 * min(max(goal, 0.0), 1.0)
        parts.append(f'<line class="goal" x1="0" x2="120" y1="{y:.0f}" y2="{y:.0f}"/>')
    if flip is not None:
        parts.append(f'<line class="flip" x1="{flip:.0f}" x2="{flip:.0f}" y1="1" y2="31"/>')
    parts.append(f'<polyline class="mean" points="{points}"/>')
    if chosen is not None:
        at = line[min(max(marks[1] or 0, 0), last)]
        parts.append(f'<circle cx="{chosen:.0f}" cy="{30 - 28 * at:.0f}" r="2.4"/>')
    head = f'<svg class="trace spark" viewBox="-3 -2 126 36" role="img" aria-label="{escape(label)}">'
    return Markup(f"{head}{''.join(parts)}</svg>")


DASHES = ("", "7 3", "2 3", "10 3 2 3", "4 2", "1.5 2.5")
MARKERS = (
    "M-3 0a3 3 0 1 0 6 0a3 3 0 1 0 -6 0z",
    "M-2.7 -2.7h5.4v5.4h-5.4z",
    "M0 -3.6L3.4 2.6H-3.4z",
    "M0 -3.8L3.4 0L0 3.8L-3.4 0z",
    "M0 3.6L3.4 -2.6H-3.4z",
    "M-1 -3.4h2v2.4h2.4v2h-2.4v2.4h-2v-2.4h-2.4v-2h2.4z",
)
"""Circle, square, triangle, diamond, triangle downwards, plus."""
_LETTER = 6.4
"""Width of a letter of the charts, in units of their view box."""
_LONGEST_LABEL = 40


def accuracy_chart(curves: Sequence[tuple[str, Sequence[tuple[str, float]]]], label: str) -> Markup:
    """Return accuracy as lines, for instance clean and then under each eps.

    Points of one curve are (name of the x value, accuracy). Curves are told apart by colour, dashes and markers, which
    stand side by side where values are equal, and by the label at their end, moved apart where labels would overlap.
    """
    names = list(dict.fromkeys(name for _, points in curves for name, _ in points))
    if len(names) < 2:
        return Markup("")
    step = 300 / (len(names) - 1)
    x = {name: 44 + step * i for i, name in enumerate(names)}
    apart = min(5.0, 30 / len(curves), step / 2 / len(curves))
    label_y = _label_heights(curves)
    tick_rows = min(math.ceil((_LETTER * max(map(len, names)) + 6) / step), 3)
    height = max(202 + 12 * tick_rows, max(label_y.values(), default=0) + 8)
    longest = min(max(len(_end_label(*curve)) for curve in curves), _LONGEST_LABEL)
    parts = [
        f'<line class="grid" x1="36" x2="352" y1="{y}" y2="{y}"/><text x="32" y="{y + 4}" text-anchor="end">{t}</text>'
        for y, t in ((10, "100 %"), (55, "75"), (100, "50"), (145, "25"), (190, "0"))
    ]
    parts += [
        f'<text x="{x[name]:.0f}" y="{208 + 12 * (i % tick_rows)}" text-anchor="middle">{escape(name)}</text>'
        for i, name in enumerate(names)
    ]
    for i, (model, points) in enumerate(curves):
        if points:
            aside = (i - (len(curves) - 1) / 2) * apart
            at = [(x[name] + aside, 10 + 180 * (1 - min(max(value, 0.0), 1.0))) for name, value in points]
            parts.append(_curve(i, at, _end_label(model, points), label_y[i]))
    return Markup(
        f'<svg class="accuracy" viewBox="-6 0 {380 + _LETTER * longest:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )


def _end_label(model: str, points: Sequence[tuple[str, float]]) -> str:
    """Return name and last value, short enough to stand beside the chart."""
    value = f" {100 * points[-1][1]:.1f} %" if points else ""
    room = _LONGEST_LABEL - len(value)
    return (model if len(model) <= room else f"{model[: room - 1]}\N{HORIZONTAL ELLIPSIS}") + value


def _label_heights(curves: Sequence[tuple[str, Sequence[tuple[str, float]]]]) -> dict[int, float]:
    """Return where the label of each curve stands: as near to its end as the other labels let it."""
    ends = sorted(((10 + 180 * (1 - points[-1][1]), i) for i, (_, points) in enumerate(curves) if points))
    heights = [y for y, _ in ends]
    for a, b in pairwise(range(len(heights))):
        heights[b] = max(heights[b], heights[a] + 13)
    lowest = 196.0
    for i in reversed(range(len(heights))):  # what spills over the bottom pushes the others up
        heights[i] = min(heights[i], lowest)
        lowest = heights[i] - 13
    down = max(0.0, 10 - heights[0]) if heights else 0.0
    return {i: y + down for (_, i), y in zip(ends, heights, strict=True)}


def _curve(i: int, at: Sequence[tuple[float, float]], label: str, label_y: float) -> str:
    """Return line, markers and label of curve `i`; a thin line leads from its end to its label."""
    style = i + i // 6  # a seventh curve has the first one's colour, but neither its dashes nor its markers
    line = " ".join(f"{px:.1f},{py:.1f}" for px, py in at)
    marks = "".join(
        f'<path class="marker" transform="translate({px:.1f} {py:.1f})" d="{MARKERS[style % 6]}"/>' for px, py in at
    )
    end_x, end_y = at[-1]
    return (
        f'<g class="curve c{i % 6}"><polyline points="{line}" stroke-dasharray="{DASHES[style % 6] or "none"}"/>'
        f'<line class="leader" x1="{end_x + 4:.1f}" y1="{end_y:.1f}" x2="366" y2="{label_y:.1f}"/>{marks}'
        f'<text x="369" y="{label_y + 4:.1f}">{escape(label)}</text></g>'
    )
