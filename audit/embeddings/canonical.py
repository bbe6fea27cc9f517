"""The canonical networks - FID's Inception-v3, LPIPS v0.1, CMMD's CLIP - if their weights are on the machine.

Nothing is downloaded, and no other network is used instead: without the weights the metric is not computed, and
`available` gives the reason with the command that fetches them. Files are those of `audit.storage.pretrained` and are
accepted by their SHA-256 only. Sources: Heusel et al. 2017 (arXiv:1706.08500); Zhang et al. 2018 (arXiv:1801.03924);
Jayasumana et al. 2024 (arXiv:2401.09603).
"""

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from audit.embeddings import clip
from audit.embeddings.array_pickle import read_arrays
from audit.embeddings.lpips import Backbone, Lpips, from_flax, from_torch, three_channels
from audit.errors import MetricError
from audit.storage import pretrained as weights

INCEPTION_BATCH = 32
"""Images at a time: at 299 x 299 the early layers hold some 15 MB an image."""


def available() -> dict[str, Path | str]:
    """Where each canonical network's weights are (a Path), or in words why it cannot be computed (a str)."""
    found = {name: weights.find(name) for name in weights.NETWORKS}
    return {name: weights.absence(name) if there is None else there[1][0] for name, there in found.items()}


def _obtain(name: str) -> tuple[weights.Form, tuple[Path, ...], str]:
    """Form, files and hash of the first file of a network, all files checked; raises MetricError or WeightsError."""
    there = weights.find(name)
    if there is None:
        raise MetricError(f"A canonical metric cannot be computed: {weights.absence(name)}.")
    form, paths = there
    digests = [weights.checked(file, path) for file, path in zip(form.files, paths, strict=True)]
    return form, paths, digests[0]


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
        levels = (255 * three_channels(images)).round()
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


def load_inception() -> InceptionFeatures:
    """FID's Inception-v3. Raises MetricError where its weights are absent, WeightsError where not canonical."""
    form, (path,), digest = _obtain("inception-v3-fid")
    if not form.script:
        return InceptionFeatures(_inception_layers(path), digest)
    with warnings.catch_warnings():
        # The file exists as TorchScript only; that the format is on its way out is nothing a user can change.
        warnings.simplefilter("ignore", FutureWarning)
        return InceptionFeatures(torch.jit.load(str(path), map_location="cpu"), digest)


def load_lpips(net: Backbone = "alex") -> Lpips:
    """LPIPS v0.1. Raises MetricError where its weights are absent, WeightsError where they are not canonical."""
    _, paths, digest = _obtain(f"lpips-v0.1-{net}")
    if len(paths) == 1:
        return from_flax(read_arrays(paths[0].read_bytes(), paths[0].name), net, digest)
    backbone, heads = (torch.load(path, map_location="cpu", weights_only=True) for path in paths)
    return from_torch(backbone, heads, net, digest)


def load_clip() -> clip.ClipImageTower:
    """CLIP's image tower. Raises MetricError where its weights are absent, WeightsError where not canonical."""
    form, (path,), digest = _obtain(clip.NAME)
    state = clip.read_state(path, script=form.script)
    return clip.ClipImageTower(clip.fill_tower(clip.empty_tower(), state), digest)
