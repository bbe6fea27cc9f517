"""Our corruptions beside imagecorruptions 1.1.2 on two photographs: pixels where nothing is drawn, else statistics.

The peer needs `pkg_resources`, `np.float_` and skimage's `multichannel`, which newer releases have removed, so it can
be no dependency of the tests; its statistics are kept in `corruptions_reference.json`, written by running this file
where the peer, opencv and scikit-image are installed. Where they are, the pixels are compared too. At 224 pixels
lengths are those of ImageNet-C; at 32 pixels the peer does not scale lengths and we do, so only corruptions without
lengths are compared there.
"""

import contextlib
import importlib.util
import io
import json
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional as F

from audit.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt

FILE = Path(__file__).with_name("corruptions_reference.json")
WITHOUT_LENGTHS = ("gaussian_noise", "shot_noise", "impulse_noise", "brightness", "contrast", "pixelate")
CELLS = [(224, name) for name in CORRUPTIONS] + [(32, name) for name in (*WITHOUT_LENGTHS, "jpeg_compression")]
DRAWN = {"gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog"}
DRAWN |= {"elastic_transform"}
PEER_DRAWS = {"glass_blur": 6, "fog": 200, "frost": 60, "snow": 40, "motion_blur": 40}
OUR_DRAWS = {"glass_blur": 2, "fog": 30, "frost": 8, "snow": 6, "motion_blur": 8}
PIXELS = {
    # The peer cuts to 8 bits, up to 1/255; the rest is where a kernel or a zoom falls between pixels. Its disk touches
    # the border of its kernel from severity 4 on, which brightens the picture by 1 %: no part of the definition.
    "defocus_blur": (0.008, 0.03),
    "zoom_blur": (0.015, 0.2),
    "brightness": (0.003, 0.005),
    "contrast": (0.003, 0.005),
    "pixelate": (0.003, 0.005),
    "jpeg_compression": (0.002, 0.05),
}
"""Mean and largest absolute difference allowed between our pixels and the peer's."""
SLACK = {"frost": 0.03, "snow": 0.01}
"""Absolute slack of mean and spread of the change, 0.006 elsewhere: our ice is procedural, theirs photographed."""


def photographs(side: int) -> Tensor:
    """Two photographs `[2, 3, side, side]` in steps of 1/255."""
    pictures = [torch.from_numpy(load_sample_image(name).copy()) for name in ("china.jpg", "flower.jpg")]
    square = torch.stack(pictures).permute(0, 3, 1, 2)[..., :427, 100:527].float() / 255
    return (F.interpolate(square, (side, side), mode="area") * 255).round() / 255


def statistics(change: Tensor) -> dict[str, float]:
    """Mean and spread of a change `[draws, N, C, H, W]` over pixels, and how much both vary between draws."""
    means, spreads = change.flatten(1).mean(dim=1), change.flatten(1).std(dim=1)
    many = len(change) > 1
    return {
        "mean": float(means.mean()),
        "spread": float(spreads.mean()),
        "mean_sd": float(means.std()) if many else 0.0,
        "spread_sd": float(spreads.std()) if many else 0.0,
        "draws": len(change),
    }


def our_change(side: int, name: str, severity: int, draws: int) -> Tensor:
    images = photographs(side)
    generator = torch.Generator().manual_seed(severity)
    return torch.stack([corrupt(images, name, severity, generator) - images for _ in range(draws)])


def peer_corrupted(peer: Any, images: Tensor, name: str, severity: int) -> Tensor:
    bytes_ = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    with contextlib.redirect_stdout(io.StringIO()):
        corrupted = np.stack([peer.corrupt(picture, severity, name) for picture in bytes_])
    return torch.from_numpy(corrupted).permute(0, 3, 1, 2).float() / 255


@contextlib.contextmanager
def revived_peer() -> Iterator[Any]:
    """The peer with what newer libraries removed put back while the block runs; skips where it is not installed."""
    reason = "imagecorruptions 1.1.2, opencv and scikit-image are not installed; its kept statistics are compared"
    found = importlib.util.find_spec("imagecorruptions")
    if found is None or not found.submodule_search_locations:
        pytest.skip(reason)
    pytest.importorskip("cv2", reason=reason)
    filters = pytest.importorskip("skimage.filters", reason=reason)
    folder = Path(found.submodule_search_locations[0])
    resources = types.ModuleType("pkg_resources")
    resources.resource_filename = lambda _, path: str(folder / path)

    def gaussian(image: np.ndarray, sigma: Any, multichannel: bool = False, **options: Any) -> np.ndarray:
        return filters.gaussian(image, sigma, channel_axis=-1 if multichannel else None, **options)

    state = np.random.get_state()  # noqa: NPY002  (the peer draws from the global generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pkg_resources", resources)
        patch.setattr(np, "float_", np.float64, raising=False)
        peer = importlib.import_module("imagecorruptions")
        patch.setattr(sys.modules["imagecorruptions.corruptions"], "gaussian", gaussian)
        np.random.seed(0)  # noqa: NPY002
        yield peer
    np.random.set_state(state)  # noqa: NPY002


@pytest.mark.parametrize(("side", "name"), CELLS)
def test_change_has_the_size_of_the_published_one(side: int, name: str) -> None:
    kept = json.loads(FILE.read_text())["statistics"]
    for severity in SEVERITIES:
        theirs = kept[f"{side}/{name}/{severity}"]
        ours = statistics(our_change(side, name, severity, OUR_DRAWS.get(name, 3) if name in DRAWN else 1))
        for what in ("mean", "spread"):
            error = (theirs[f"{what}_sd"] ** 2 / theirs["draws"] + theirs[f"{what}_sd"] ** 2 / ours["draws"]) ** 0.5
            assert abs(ours[what] - theirs[what]) <= 4 * error + SLACK.get(name, 0.006), (severity, what, ours, theirs)


@pytest.mark.parametrize("name", list(PIXELS))
def test_pixels_agree_with_the_peer(name: str) -> None:
    mean, largest = PIXELS[name]
    images = photographs(224)
    with revived_peer() as peer:
        for severity in SEVERITIES:
            theirs = peer_corrupted(peer, images, name, severity)
            difference = (our_change(224, name, severity, 1)[0] + images - theirs).abs()
            assert difference.mean() <= mean
            assert difference.max() <= largest


def write_reference() -> None:
    """Write the peer's statistics; needs the peer."""
    kept = {}
    with revived_peer() as peer:
        for side, name in CELLS:
            images = photographs(side)
            for severity in SEVERITIES:
                draws = PEER_DRAWS.get(name, 10) if name in DRAWN else 1
                change = torch.stack([peer_corrupted(peer, images, name, severity) - images for _ in range(draws)])
                kept[f"{side}/{name}/{severity}"] = {k: round(v, 6) for k, v in statistics(change).items()}
    made = {
        "peer": "imagecorruptions 1.1.2",
        "how": "python tests/conformance/test_corruptions_reference.py; seed 0; china.jpg and flower.jpg of "
        "scikit-learn, rows 0-426, columns 100-526, area-averaged to the side; change = corrupted - clean in [0, 1]",
        "versions": {name: importlib.import_module(name).__version__ for name in ("numpy", "scipy", "skimage", "cv2")},
    }
    cells = ",\n".join(f"  {json.dumps(cell)}: {json.dumps(values)}" for cell, values in kept.items())
    FILE.write_text(f'{{\n "made": {json.dumps(made)},\n "statistics": {{\n{cells}\n }}\n}}\n')


if __name__ == "__main__":
    write_reference()
