"""Say what an unsupported generator file is, from the names of its tensors.

The names are those that the state dictionaries of widespread projects have; they are facts of those formats.
"""

import json
import re
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

from audit.storage.tensors.file_bytes import Foreign
from audit.storage.tensors.plain_pickle import Name

SUPPORTED = "only StyleGAN2 is supported (snapshots of StyleGAN2-ADA, rosinality's checkpoints, or our own files)"
_OTHER_LAYOUT = "convert it to the layout of StyleGAN2-ADA or of rosinality"
MAX_NAMES = 20_000
MAX_INDEX = 2**20

_KINDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("StyleGAN-XL", (r"synthesis\.L\d+_", r"mapping\.embed_proj\.")),
    ("StyleGAN3", (r"synthesis\.L\d+_\d+",)),
    ("StyleGAN3", (r"synthesis\.input\.(affine|transform|freqs|phases)",)),
    ("lucidrains' stylegan2-pytorch", (r"S\.net\.0\.", r"G\.(initial_block|blocks\.0\.)")),
    ("lucidrains' lightweight-gan", (r"G\.layers\.\d+\.", r"G\.(initial_conv|out_conv)\.")),
    ("StyleGAN1", (r"g_(synthesis|mapping)\.",)),
    ("StyleGAN1", (r"generator\.progression\.\d+\.",)),
    ("StyleGAN1", (r"blocks\.\d+(x\d+)?\.epi[12]\.",)),
    ("BigGAN", (r"(generator\.)?gen_z\.",)),
    ("BigGAN", (r"(shared|linear|linear0)\.", r"blocks\.\d+\.\d+\.(bn1|conv1)\.")),
    ("ProGAN", (r"(scaleLayers|toRGBLayers)\.\d",)),
    ("ProGAN", (r"(rgb_converters|rgb_layers|prog_blocks)\.\d",)),
    ("a model of MONAI", (r"quant_conv_(mu|log_sigma)\.",)),
    ("a model of MONAI", (r"quantizer\.quantizer\.embedding",)),
    ("a model of MONAI", (r"conv_in\.conv\.", r"(down_blocks|time_embed)\.\d")),
    ("a model of MONAI", (r"(encoder|decoder)\.blocks\.\d+\.(conv|norm1|conv1)\.",)),
    ("a model of diffusers", (r"time_embedding\.linear_1\.", r"down_blocks\.\d")),
    ("a model of diffusers", (r"(encoder|decoder)\.(down_blocks|up_blocks|mid_block)\.",)),
    ("a latent diffusion model", (r"(model\.diffusion_model|first_stage_model)\.",)),
    ("a diffusion model", (r"input_blocks\.\d+\.\d", r"time_embed\.\d")),
    ("a diffusion model", (r"downs\.0\.", r"(time_mlp|init_conv)\.")),
    ("FastGAN", (r"(se_64|feat_8)\.",)),
    ("DCGAN", (r"main\.0\.weight", r"main\.3\.weight")),
    ("StyleGAN2 in MMGeneration's layout", (r"style_mapping\.\d", r"constant_input\.const")),
    ("StyleGAN2 in BasicSR's layout", (r"style_mlp\.\d", r"style_convs\.\d")),
    ("StyleGAN2 in GenForce's layout", (r"mapping\.dense0\.", r"synthesis\.(layer|output)0\.")),
    ("an encoder of pSp or e4e without its decoder", (r"input_layer\.0\.", r"styles\.0\.")),
    ("a discriminator of StyleGAN2 without its generator", (r"b4\.out\.weight",)),
    ("a discriminator of StyleGAN2 without its generator", (r"final_linear\.1\.weight",)),
    ("an image classifier", (r"layer1\.0\.conv1\.weight", r"(fc|head|linear)\.")),
    ("an image classifier", (r"blocks\.0\.attn\.qkv\.", r"head\.")),
    ("an image classifier", (r"features\.0\.", r"classifier\.")),
)
"""Kinds with patterns all of which have to begin some part of some name; the first that fits is taken."""
_CLASSES = {"SuperresGenerator": "StyleGAN-XL", "StackedMLPMapping": "StyleGAN-XL"}


def foreign(names: Iterable[str], classes: Iterable[str] = (), named: Iterable[Name] = ()) -> Foreign | None:
    """Recognise the tensors' `names`, the modules' `classes` and the globals that a pickle named; None if unknown."""
    some = list(islice(names, MAX_NAMES))
    packages = {module.split(".")[0] for module, _ in named}
    if any(module.startswith(("dnnlib.tflib", "tfutil")) or module == "network" for module, _ in named):
        return Foreign(
            "TensorFlow pickle",
            "it is a pickle of TensorFlow (StyleGAN2, StyleGAN1 or ProGAN): convert a StyleGAN2 with legacy.py of "
            "stylegan2-ada-pytorch; others are not supported",
        )
    kind = next((_CLASSES[name] for name in classes if name in _CLASSES), None)
    if "pg_modules" in packages:
        kind = "StyleGAN-XL"
    for candidate, patterns in _KINDS if kind is None else ():
        if all(any(found.search(name) for name in some) for found in map(_within, patterns)):
            kind = candidate
            break
    if kind is None:
        return None
    if kind.startswith("StyleGAN2 in"):
        return Foreign(kind, f"it is {kind}: {_OTHER_LAYOUT}")
    return Foreign(kind, f"it is {kind}, and {SUPPORTED}")


def _within(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?:^|\.){pattern}")


_MAGIC = (
    (b"\x89HDF", "HDF5 (Keras)"), (b"GGUF", "GGUF"), (b"\x1f\x8b", "gzip"), (b"\xfd7zXZ", "xz"), (b"BZh", "bzip2"),
    (b"7z\xbc\xaf", "7z"), (b"Rar!", "RAR"), (b"\x93NUMPY", "numpy"), (b"\x89PNG", "PNG"), (b"\xff\xd8\xff", "JPEG"),
    (b"<", "HTML or XML"), (b"version https://git-lfs", "Git LFS pointer"),
)  # fmt: skip


def by_first_bytes(start: bytes) -> Foreign | None:
    """Recognise a file of quite another kind by its first bytes."""
    for magic, kind in _MAGIC:
        if start.startswith(magic):
            how = "fetch the file itself" if "LFS" in kind else "unpack it" if kind in _PACKED else SUPPORTED
            return Foreign(kind, f"it is a file of the kind {kind}: {how}")
    return None


_PACKED = ("gzip", "xz", "bzip2", "7z", "RAR")


def archive_kind(members: Iterable[str]) -> Foreign | None:
    """Recognise a zip file that `torch.save` did not write."""
    names = list(islice(members, MAX_NAMES))
    if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
        return Foreign("TorchScript", "it is a TorchScript program: save the state_dict() of its generator")
    if any(name.endswith(".npy") for name in names):
        return Foreign("npz", f"it is an archive of numpy arrays, and {SUPPORTED}")
    if any("serialized_exported_program" in name or "/models/" in name for name in names):
        return Foreign("torch.export", "it is a program of torch.export: save the state_dict() of its generator")
    return None


def folder_kind(folder: Path) -> Foreign:
    """Say what a folder that was given for a file is."""
    index = folder / "model_index.json"
    for file, key in ((index, "_class_name"), (folder / "config.json", "_class_name")):
        if file.is_file():
            return Foreign("diffusers", f"it is a folder of diffusers{_named(file, key)}, and {SUPPORTED}")
    if (folder / "saved_model.pb").is_file():
        return Foreign("TensorFlow SavedModel", f"it is a SavedModel of TensorFlow, and {SUPPORTED}")
    return Foreign("folder", "it is a folder: name the file of the generator in it")


def _named(file: Path, key: str) -> str:
    try:
        with file.open("rb") as opened:
            said = json.loads(opened.read(MAX_INDEX))
    except (OSError, ValueError, RecursionError):
        return ""
    name = said.get(key) if isinstance(said, dict) else None
    return f" ({name[:60]})" if isinstance(name, str) else ""
