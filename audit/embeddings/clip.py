"""CLIP's image tower as an embedder: the embedding in which the maximum mean discrepancy is called CMMD.

The projected 768 features of ViT-L/14 at 336 pixels (Radford et al. 2021, arXiv:2103.00020), as CMMD takes them
(Jayasumana et al. 2024, arXiv:2401.09603, §4); the metric scales them to unit length. The architecture is
timm's, with the activation that the weights were trained with (x * sigmoid(1.702 x)); the weights come from the hub's
checkpoint or from OpenAI's own TorchScript archive; its names are translated to timm's.
"""

import re
import warnings
import zipfile
from pathlib import Path

import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from audit.embeddings.lpips import three_channels
from audit.errors import MetricError

NAME = "clip-vit-large-patch14-336"
ARCHITECTURE = "vit_large_patch14_clip_quickgelu_336"
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BATCH = 16
"""Images at a time: 577 tokens of 24 layers, some 60 MB an image."""

_HUB_NAMES = (
    (r"vision_model\.embeddings\.class_embedding", "cls_token"),
    (r"vision_model\.embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"vision_model\.embeddings\.position_embedding\.weight", "pos_embed"),
    (r"vision_model\.pre_layrnorm\.", "norm_pre."),
    (r"vision_model\.post_layernorm\.", "norm."),
    (r"vision_model\.encoder\.layers\.", "blocks."),
    (r"\.layer_norm", ".norm"),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"visual_projection\.", "head."),
)


class ClipImageTower(nn.Module):
    """An image tower as an embedder of images in [0, 1].

    Input: images rounded to bytes, brought to the tower's side by bicubic interpolation (pixel centres, no antialias,
    as in the published CMMD), then CLIP's mean and standard deviation; grey is repeated to three channels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tower: VisionTransformer, weights_sha256: str, name: str = NAME) -> None:
        super().__init__()
        self.tower = tower.float().eval().requires_grad_(False)
        self.side = tower.patch_embed.img_size[0]
        self.register_buffer("mean", torch.tensor(MEAN).reshape(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).reshape(1, 3, 1, 1))
        self.name = name
        self.weights_sha256 = weights_sha256

    def embed(self, images: Tensor) -> Tensor:
        """Map images `[N, 1 or 3, H, W]` in [0, 1] to features `[N, d]`; memory is bounded whatever N."""
        return torch.cat([self._embed(part) for part in images.split(BATCH)])

    def _embed(self, images: Tensor) -> Tensor:
        levels = (255 * three_channels(images)).round() / 255
        resized = nn.functional.interpolate(levels, (self.side, self.side), mode="bicubic", align_corners=False)
        return self.tower((resized - self.mean) / self.std)


def names_of_timm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The image tower out of a checkpoint of the hub, under timm's names; the text tower is left out."""
    given: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        if not key.startswith(("vision_model.", "visual_projection.")) or key.endswith("position_ids"):
            continue
        for pattern, name in _HUB_NAMES:
            key = re.sub(pattern, name, key)
        if split := re.fullmatch(r"(.*)\.self_attn\.([qkv])_proj\.(weight|bias)", key):
            parts.setdefault(f"{split[1]}.attn.qkv.{split[3]}", {})[split[2]] = value
        else:
            given[key] = value
    given |= {key: torch.cat([three[part] for part in "qkv"]) for key, three in parts.items()}
    given["cls_token"] = given["cls_token"].reshape(1, 1, -1)
    given["pos_embed"] = given["pos_embed"][None]
    given["head.bias"] = torch.zeros(len(given["head.weight"]))
    return given


def empty_tower() -> VisionTransformer:
    """The tower without weights: nothing is drawn, and its 1.2 GB are not filled for nothing."""
    with torch.device("meta"):
        tower = timm.create_model(ARCHITECTURE, pretrained=False, num_classes=768)
    assert isinstance(tower, VisionTransformer)
    return tower


def fill_tower(tower: VisionTransformer, state: dict[str, Tensor]) -> VisionTransformer:
    """Give `tower` a checkpoint's weights, in the hub's or OpenAI's names. Raises MetricError if they do not fit."""
    hub = any(key.startswith("vision_model.") for key in state)
    try:
        given = names_of_timm(state) if hub else checkpoint_filter_fn(state, tower)
        tower.load_state_dict(given, assign=True)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise MetricError(f"The weights of CLIP's image tower do not fit {ARCHITECTURE} of timm: {reason}") from None
    return tower


def read_state(path: Path, script: bool) -> dict[str, Tensor]:
    """Tensors of a checkpoint (memory-mapped where its format allows) or of a TorchScript archive."""
    if not script:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    with warnings.catch_warnings():
        # The file exists as TorchScript only; that the format is on its way out is nothing a user can change.
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.load(str(path), map_location="cpu").state_dict()
