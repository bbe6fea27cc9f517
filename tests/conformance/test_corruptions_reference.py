"""Our corruptions beside two peers on two photographs: pixels where nothing is drawn, else statistics.

ImageNet-C's constants, all 15 at 224 pixels: imagecorruptions 1.1.2. It needs `pkg_resources`, `np.float_` and
skimage's `multichannel`, which newer releases have removed, so it can be no dependency of the tests; its statistics are
kept in `corruptions_reference.json`, written by running this file where the peer, opencv and scikit-image are
installed. Where they are, the pixels are compared too. At 32 pixels the peer does not scale lengths and we do, so only
corruptions without lengths are compared there.

CIFAR-10-C's constants, all 15 at 32 pixels: `make_cifar_c.py` of hendrycks/robustness, whose statistics are kept in
the same way (it needs ImageMagick's library besides). What draws nothing is computed anew below with scipy and Pillow,
pixel by pixel. Statistics are mean and spread of the change: they tell its size, not its shape.
"""

import colorsys
import contextlib
import importlib.util
import io
import json
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from sklearn.datasets import load_sample_image
from torch import Tensor
from torch.nn import functional as F

from audit.robustness.corruptions.constants import CIFAR_C, IMAGENET_C, Constants
from audit.robustness.corruptions.run import CORRUPTIONS, SEVERITIES, corrupt

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


CIFAR_SLACK = {"glass_blur": 0.003}
"""Absolute slack for CIFAR-10-C, 0.0015 elsewhere: the script cuts to 8 bits between the blurs as well."""
CIFAR_DRAWS = 60


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


def our_change(side: int, name: str, severity: int, draws: int, published: Constants = IMAGENET_C) -> Tensor:
    images = photographs(side)
    generator = torch.Generator().manual_seed(severity)
    return torch.stack([corrupt(images, name, severity, generator, published) - images for _ in range(draws)])


def peer_corrupted(peer: Any, images: Tensor, name: str, severity: int) -> Tensor:
    bytes_ = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    with contextlib.redirect_stdout(io.StringIO()):
        corrupted = np.stack([peer.corrupt(picture, severity, name) for picture in bytes_])
    return torch.from_numpy(corrupted).permute(0, 3, 1, 2).float() / 255


def multichannel(gaussian: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    """skimage's blur with the argument that newer releases have renamed."""

    def blur(image: np.ndarray, sigma: Any, multichannel: bool = False, **options: Any) -> np.ndarray:
        return gaussian(image, sigma, channel_axis=-1 if multichannel else None, **options)

    return blur


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

    state = np.random.get_state()  # noqa: NPY002  (the peer draws from the global generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pkg_resources", resources)
        patch.setattr(np, "float_", np.float64, raising=False)
        peer = importlib.import_module("imagecorruptions")
        patch.setattr(sys.modules["imagecorruptions.corruptions"], "gaussian", multichannel(filters.gaussian))
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


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_cifar_change_has_the_size_of_the_published_one(name: str) -> None:
    kept = json.loads(FILE.read_text())["cifar_statistics"]
    for severity in SEVERITIES:
        theirs = kept[f"32/{name}/{severity}"]
        images = photographs(32)
        changed = our_change(32, name, severity, CIFAR_DRAWS if name in DRAWN else 1, CIFAR_C) + images
        # The script cuts to 8 bits, and Pillow rounds; 1e-4 keeps what float errors leave just below a whole level.
        up = 0.5 if name in ("pixelate", "jpeg_compression") else 1e-4
        ours = statistics((changed * 255 + up).floor() / 255 - images)
        for what in ("mean", "spread"):
            error = (theirs[f"{what}_sd"] ** 2 / theirs["draws"] + theirs[f"{what}_sd"] ** 2 / ours["draws"]) ** 0.5
            slack = CIFAR_SLACK.get(name, 0.0015)
            assert abs(ours[what] - theirs[what]) <= 4 * error + slack, (severity, what, ours, theirs)


def through_pillow(images: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    pictures = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    changed = np.stack([np.asarray(change(Image.fromarray(picture))) for picture in pictures])
    return torch.from_numpy(changed).permute(0, 3, 1, 2).float() / 255


def jpeg(quality: int) -> Callable[[Image.Image], Image.Image]:
    def change(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return change


def boxes(count: int) -> Callable[[Image.Image], Image.Image]:
    box = Image.Resampling.BOX
    return lambda picture: picture.resize((count, count), box).resize(picture.size, box)


def disk_blurred(images: Tensor, radius: float, sigma: float) -> Tensor:
    offsets = np.arange(-8, 9)
    disk = ((offsets[:, None] ** 2 + offsets[None] ** 2) <= radius**2).astype(float)
    weights = np.exp(-(np.arange(-1, 2) ** 2) / (2 * sigma**2))
    soft = np.outer(weights, weights) / weights.sum() ** 2
    kernel = ndimage.convolve(disk / disk.sum(), soft, mode="constant")
    return torch.from_numpy(ndimage.correlate(images.double().numpy(), kernel[None, None], mode="mirror")).float()


def zoomed(images: Tensor, factors: np.ndarray) -> Tensor:
    """The mean of the image and its zoomed copies: cropped, stretched and cropped again, by whole pixels."""
    pictures = images.double().numpy()
    side, total = pictures.shape[-1], pictures.copy()
    for factor in factors:
        part = int(np.ceil(side / factor))
        first = (side - part) // 2
        cropped = pictures[..., first : first + part, first : first + part]
        large = ndimage.zoom(cropped, (1, 1, factor, factor), order=1)
        cut = (large.shape[-1] - side) // 2
        total += large[..., cut : cut + side, cut : cut + side]
    return torch.from_numpy(total / (len(factors) + 1)).float()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_cifar_pixels_agree_with_the_published_definitions(severity: int) -> None:
    """The numbers of `make_cifar_c.py` once more, each with another library than ours."""
    images, level = photographs(32), severity - 1
    hsv = images.permute(0, 2, 3, 1).double().numpy().reshape(-1, 3)
    brighter = (0.05, 0.1, 0.15, 0.2, 0.3)[level]
    raised = [(h, s, min(v + brighter, 1.0)) for h, s, v in (colorsys.rgb_to_hsv(*pixel) for pixel in hsv)]
    bright = torch.tensor([colorsys.hsv_to_rgb(*pixel) for pixel in raised]).reshape(2, 32, 32, 3).permute(0, 3, 1, 2)
    means = images.mean(dim=(2, 3), keepdim=True)
    expected = {
        "brightness": (bright, 1e-5),
        "contrast": ((images - means) * (0.75, 0.5, 0.4, 0.3, 0.15)[level] + means, 1e-5),
        "pixelate": (through_pillow(images, boxes((30, 28, 27, 24, 20)[level])), 0.004),
        "jpeg_compression": (through_pillow(images, jpeg((80, 65, 58, 50, 40)[level])), 1e-6),
        "defocus_blur": (
            disk_blurred(images, *((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))[level]),
            1e-4,
        ),
        "zoom_blur": (zoomed(images, np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[level], 0.01)), 1e-4),
    }
    for name, (theirs, largest) in expected.items():
        ours = corrupt(images, name, severity, torch.Generator(), CIFAR_C)
        assert (ours - theirs.clamp(0, 1)).abs().max() <= largest, name


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


@contextlib.contextmanager
def revived_script(file: Path, frost: Path) -> Iterator[dict[str, Any]]:
    """The functions of `make_cifar_c.py` up to the part that loads CIFAR-10; `frost` is its folder of photographs."""
    source = file.read_text().split("import collections")[0]
    source = "\n".join(line for line in source.splitlines() if "torchvision" not in line)
    filters = importlib.import_module("skimage.filters")
    state, folder = np.random.get_state(), Path.cwd()  # noqa: NPY002
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "float_", np.float64, raising=False)
        patch.setattr(np, "fromstring", np.frombuffer)
        fromarray = Image.fromarray
        patch.setattr(Image, "fromarray", lambda array, mode=None: fromarray(array))
        interpolation = types.ModuleType("scipy.ndimage.interpolation")
        interpolation.map_coordinates = ndimage.map_coordinates
        patch.setitem(sys.modules, "scipy.ndimage.interpolation", interpolation)
        patch.setattr(filters, "gaussian", multichannel(filters.gaussian))
        patch.chdir(frost)
        scope: dict[str, Any] = {}
        exec(compile(source, str(file), "exec"), scope)
        np.random.seed(0)  # noqa: NPY002
        yield scope
    np.random.set_state(state)  # noqa: NPY002
    assert Path.cwd() == folder


def script_corrupted(scope: dict[str, Any], images: Tensor, name: str, severity: int) -> Tensor:
    bytes_ = (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    corrupted = np.stack([np.uint8(scope[name](Image.fromarray(picture), severity)) for picture in bytes_])
    return torch.from_numpy(corrupted).permute(0, 3, 1, 2).float() / 255


def rows(
    side: int, names: Sequence[str], peer: Callable[[Tensor, str, int], Tensor], draws: dict[str, int]
) -> list[str]:
    images, kept = photographs(side), []
    for name in names:
        for severity in SEVERITIES:
            many = range(draws.get(name, 10) if name in DRAWN else 1)
            change = torch.stack([peer(images, name, severity) - images for _ in many])
            values = {k: round(v, 6) for k, v in statistics(change).items()}
            kept.append(f"  {json.dumps(f'{side}/{name}/{severity}')}: {json.dumps(values)}")
    return kept


def write_reference(script: Path, frost: Path) -> None:
    """Write the peers' statistics; needs the peers, and the photographs of frost of either."""
    versions = {name: importlib.import_module(name).__version__ for name in ("numpy", "scipy", "skimage", "cv2")}
    pictures = "china.jpg and flower.jpg of scikit-learn, rows 0-426, columns 100-526, area-averaged to the side"
    how = f"seed 0; {pictures}; change = corrupted - clean in [0, 1]"
    with revived_peer() as peer:
        cells = [
            line
            for side, name in CELLS
            for line in rows(side, [name], lambda *given: peer_corrupted(peer, *given), PEER_DRAWS)
        ]
    with revived_script(script, frost) as scope:
        draws = dict.fromkeys(DRAWN, 200)
        cifar = rows(32, CORRUPTIONS, lambda *given: script_corrupted(scope, *given), draws)
    made = {"peer": "imagecorruptions 1.1.2", "how": how, "versions": versions}
    magick = importlib.import_module("wand.version").MAGICK_VERSION
    made_cifar = {
        "peer": "hendrycks/robustness ca36008, ImageNet-C/create_c/make_cifar_c.py",
        "how": f"{how}, cut to 8 bits; frost1.png to frost5.jpg as imagecorruptions 1.1.2 ships them",
        "versions": versions | {"ImageMagick": magick},
    }
    parts = {"made": made, "statistics": cells, "cifar_made": made_cifar, "cifar_statistics": cifar}
    lines = [
        f' "{key}": ' + (json.dumps(part) if isinstance(part, dict) else "{\n" + ",\n".join(part) + "\n }")
        for key, part in parts.items()
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    write_reference(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
