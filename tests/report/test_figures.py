"""The pictures: outlines enclose their masks, colours rise evenly, scales are common, broken files are named."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from audit.errors import ResultsError
from audit.report import figures


def decode(uri: str) -> Image.Image:
    head, data = uri.split(",", 1)
    assert head in ("data:image/png;base64", "data:image/webp;base64")
    return Image.open(io.BytesIO(base64.b64decode(data)))


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9)))
@settings(max_examples=25, deadline=None)
def test_outline_encloses_exactly_the_mask(mask: np.ndarray):
    height, width = mask.shape
    crossings = np.zeros((height, width + 1), int)
    for x, a, b in re.findall(r"M(\d+) (\d+)V(\d+)", figures.outline_path(mask)):
        crossings[int(a) : int(b), int(x)] += 1
    inside = crossings.cumsum(1)[:, :width] % 2  # even-odd rule along each row
    assert (inside == mask).all()
    across = np.zeros((height + 1, width), int)
    for a, y, b in re.findall(r"M(\d+) (\d+)H(\d+)", figures.outline_path(mask)):
        across[int(y), int(a) : int(b)] += 1
    assert (across.cumsum(0)[:height] % 2 == mask).all()


def test_outline_of_nothing_is_empty():
    assert figures.outline_path(np.zeros((4, 4), bool)) == ""


def test_colours_rise_evenly_in_lightness():
    rgb = figures.colour_map().astype(float) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert rgb[0].max() == 0
    assert luminance[-1] > 0.85
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    lightness = np.cbrt(cones) @ [0.2104542553, 0.7936177850, -0.0040720468]
    # Bytes are coarse where the map is almost black; above that, equal steps of edit are equal steps of lightness.
    assert np.abs(lightness - np.linspace(0, 0.97, 256))[16:].max() < 0.01


@given(hnp.arrays(np.uint8, (8, 8)))
@settings(max_examples=25, deadline=None)
def test_common_scale_covers_nearly_all_pixels(edit: np.ndarray):
    scale = figures.common_scale([edit])
    shares = edit / 255 * figures.EDIT_FULL_SCALE
    assert 0 < scale <= figures.EDIT_FULL_SCALE
    assert (shares <= scale + 1e-12).mean() >= 0.995


def test_common_scale_of_nothing_and_of_black():
    assert figures.common_scale([]) == figures.common_scale([np.zeros((4, 4), np.uint8)]) == 0.005


@given(hnp.arrays(float, (5, 7), elements=st.floats(0, 0.3)), st.sampled_from([0.01, 0.1, 0.25]))
@settings(max_examples=25, deadline=None)
def test_heat_map_shows_each_pixel_in_its_colour(edit: np.ndarray, scale: float):
    image = np.asarray(decode(figures.heat_uri(edit, scale)).convert("RGB"))
    expected = figures.colour_map()[np.rint(np.clip(edit / scale, 0, 1) * 255).astype(int)]
    assert (image == expected).all()


@pytest.mark.parametrize(("mode", "side"), [("L", 32), ("RGB", 32), ("RGBA", 32), ("I;16", 32), ("LA", 32)])
def test_small_images_are_embedded_without_loss(mode: str, side: int):
    image = Image.new(mode, (side, side), 0)
    assert decode(figures.image_uri(image)).size == (side, side)


def test_large_photographs_are_made_small():
    noise = np.random.default_rng(0).integers(0, 256, (900, 600, 3), dtype=np.uint8)
    uri = figures.image_uri(Image.fromarray(noise))
    assert decode(uri).size == (213, 320)
    assert len(uri) < 250_000


def test_trouble_with_an_image_is_named(tmp_path: Path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.new("L", (2, 2)).save(tmp_path / "outside.png")
    for name, words in (("none.png", "is not in"), ("broken.png", "cannot be read"), ("../outside.png", "outside")):
        with pytest.raises(ResultsError, match=words):
            figures.read_image(tmp_path / "in", name)


def test_intervals_stand_by_tiers():
    rows = [("<a>", 68.0, 66.0, 71.0, 1), ("b" * 60, 63.0, 60.0, 67.0, 2), ("c", 62.0, None, float("nan"), 2)]
    chart = figures.interval_chart(rows, "intervals")
    assert chart.count('class="between"') == 1  # under the first model, and not between those that share a tier
    assert "&lt;a&gt;" in chart
    assert "nan" not in chart
    centres = [float(x) for x in re.findall(r'<circle cx="([\d.]+)"', chart)]
    spans = [(float(a), float(b)) for a, b in re.findall(r'class="reach" x1="([\d.]+)" x2="([\d.]+)"', chart)]
    assert centres == sorted(centres, reverse=True)
    assert all(a <= x <= b for x, (a, b) in zip(centres, spans, strict=True))
    assert figures.interval_chart([], "none") == ""


def test_one_trace_is_drawn_with_its_goal_flip_and_end():
    line = figures.spark_line([0.0, 0.2, 0.8, 0.9], (2, 3), 0.9, "trace")
    assert all(f'class="{kind}"' in line for kind in ("goal", "flip", "mean"))
    assert '<circle cx="120"' in line
    bare = figures.spark_line([0.0, 0.1], (None, 1), None, "trace")
    assert not re.search(r'class="(goal|flip)"', bare)
    assert (
        figures.spark_line([0.5], (0, 0), None, "x") == figures.spark_line([float("nan"), 1], (0, 1), None, "x") == ""
    )


def test_charts_survive_missing_and_broken_numbers():
    nan = float("nan")
    assert figures.trace_chart([], 0.9, "none") == figures.trace_chart([[nan, 1.0], [0.5]], None, "none") == ""
    assert "nan" not in figures.interval_bar(0.5, nan, None, "bar")
    assert "nan" not in figures.share_bar(0.5, "bar", nan)
    assert figures.accuracy_chart([("a", [("clean", 0.9)])], "curves") == ""
    assert "nan" not in figures.accuracy_chart([("a", []), ("b", [("clean", 0.9), ("8/255", 0.1)])], "curves")


def test_labels_are_escaped():
    chart = figures.trace_chart([[0.0, 1.0]], 0.5, '"><script>')
    curves = figures.accuracy_chart([("<b>", [("clean", 1.0), ("<i>", 0.0)])], '"<x>')
    bars = figures.share_bar(0.1, '"<x>') + figures.interval_bar(1, 0, 2, '"<x>')
    assert not re.search(r"<script|<b>|<i>|<x>", chart + curves + bars)


def test_labels_of_curves_do_not_overlap():
    curves = [(f"m{i}", [("clean", 0.9), ("8/255", 0.01 * i)]) for i in range(12)]
    heights = sorted(float(y) for y in re.findall(r'x="369" y="([\d.]+)"', figures.accuracy_chart(curves, "curves")))
    assert np.diff(heights).min() >= 12.9
    assert heights[0] > 0
    assert heights[-1] <= 214


@pytest.mark.parametrize("count", [3, 12, 30])
def test_curves_of_equal_values_are_told_apart(count: int):
    curves = [(f"a model of a rather long name, number {i}", [("clean", 0.9), ("8/255", 0.0)]) for i in range(count)]
    chart = figures.accuracy_chart(curves, "curves")
    lines = re.findall(r'<g class="curve (c\d)"><polyline points="([^"]+)" stroke-dasharray="([^"]+)"/>', chart)
    assert len(lines) == count
    assert len({line[1] for line in lines}) == count  # side by side, not one upon the other
    assert len({(colour, dashes) for colour, _, dashes in lines}) == count
    ends = [float(points.split()[-1].split(",")[0]) for _, points, _ in lines]
    assert max(ends) - min(ends) <= 30
    width, height = (float(v) for v in re.findall(r'viewBox="-6 0 (\d+) (\d+)"', chart)[0])
    labels = re.findall(r'<text x="369" y="([\d.]+)">([^<]+)</text>', chart)
    assert all(0 < float(y) < height and len(words) <= 40 and words.endswith(" 0.0 %") for y, words in labels)
    assert width >= 369 + 6 * 38


def test_names_on_the_axis_do_not_run_into_each_other():
    radii = [f"{i}.5/255" for i in range(9)]
    chart = figures.accuracy_chart([("m", [("clean", 1.0), *((r, 0.5) for r in radii)])], "curves")
    found = re.findall(r'x="(\d+)" y="(\d+)" text-anchor="middle">([^<]+)', chart)
    assert [name for *_, name in found] == ["clean", *radii]
    rows: dict[str, list[float]] = {}
    for x, y, _ in found:
        rows.setdefault(y, []).append(float(x))
    assert all(np.diff(sorted(xs)).min() >= 50 for xs in rows.values())
