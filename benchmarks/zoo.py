"""Can any trained classifier be audited? Architectures of three libraries, with random weights, through a whole audit.

    python benchmarks/zoo.py run [--out runs/zoo.json] [--only NAME ...]
    python benchmarks/zoo.py table [--out runs/zoo.json]

Every network is written as its users would - a checkpoint, or a folder of `save_pretrained` - and audited on six images
of the phantom by `run_audit`: loading, first look, certificate, clean accuracy, PGD of two steps on two images. What is
counted: whether it loaded, whether its robustness was measured, and where its features come from. A refusal has to be
one sentence; anything else is a traceback and counts as such. `run` goes on where it was stopped.
"""

import argparse
import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from safetensors.torch import save_model
from torchvision import models

from audit.config import AuditConfig
from audit.errors import AuditError
from audit.pipeline.runner import run_audit

CLASSES = 3
"""Of the phantom."""

TIMM: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet18": (64, {}),
    "seresnext26d_32x4d": (64, {}),
    "resnetv2_50": (64, {}),
    "densenet121": (64, {}),
    "mobilenetv2_050": (64, {}),
    "mobilenetv3_small_050": (64, {}),
    "efficientnet_b0": (64, {}),
    "tf_efficientnetv2_b0": (64, {}),
    "ghostnet_050": (64, {}),
    "hrnet_w18_small": (64, {}),
    "dla46_c": (64, {}),
    "inception_v3": (96, {}),
    "regnety_002": (64, {}),
    "nf_regnet_b0": (64, {}),
    "vovnet39a": (64, {}),
    "cspresnet50": (64, {}),
    "lcnet_050": (64, {}),
    "convnext_atto": (64, {}),
    "convnextv2_atto": (64, {}),
    "inception_next_atto": (64, {}),
    "mambaout_femto": (64, {}),
    "edgenext_xx_small": (64, {}),
    "mobilevit_xxs": (64, {}),
    "mobileone_s0": (64, {}),
    "repvgg_a0": (64, {}),
    "repvit_m0_9": (64, {}),
    "fastvit_t8": (64, {}),
    "efficientformer_l1": (224, {}),
    "levit_128s": (224, {}),
    "swiftformer_xs": (64, {}),
    "poolformer_s12": (64, {}),
    "vit_tiny_patch16_224": (64, {"img_size": 64}),
    "deit_tiny_distilled_patch16_224": (64, {"img_size": 64}),
    "pit_ti_distilled_224": (224, {}),
    "swin_tiny_patch4_window7_224": (64, {"img_size": 64, "window_size": 4}),
    "crossvit_tiny_240": (240, {}),
    "volo_d1_224": (64, {"img_size": 64}),
    "mixer_s32_224": (64, {"img_size": 64}),
    "xcit_nano_12_p16_224": (64, {}),
    "tiny_vit_5m_224": (224, {}),
}
"""Side of the images and arguments, by the name of the architecture."""

TORCHVISION = {
    "resnet18": 64,
    "squeezenet1_1": 64,
    "shufflenet_v2_x0_5": 64,
    "mobilenet_v3_small": 64,
    "mnasnet0_5": 64,
    "efficientnet_v2_s": 64,
    "convnext_tiny": 64,
    "regnet_y_400mf": 64,
}


def _hugging_face() -> dict[str, tuple[str, dict[str, Any]]]:
    """Return name of the configuration's class and arguments of four small image classifiers."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return {
        "ViT": ("ViTConfig", {**small, "image_size": 64}),
        "DINOv2": ("Dinov2Config", {**small, "image_size": 64, "patch_size": 16}),
        "ResNet": ("ResNetConfig", {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1]}),
        "ConvNextV2": ("ConvNextV2Config", {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}),
    }


@dataclass(frozen=True)
class Row:
    """What became of one network; `refused` is the sentence, `traceback` the error that was none."""

    library: str
    name: str
    loaded: bool
    robustness: bool
    features: str | None
    seconds: float
    refused: str | None = None
    traceback: str | None = None


def of_timm(name: str, folder: Path) -> dict[str, Any]:
    side, args = TIMM[name]
    network = timm.create_model(name, num_classes=CLASSES, **args)
    save_model(network, str(folder / "it.safetensors"))
    given = {"architecture": name, "architecture_args": args, "checkpoint": str(folder / "it.safetensors")}
    return {**given, "input_size": side}


def of_torchvision(name: str, folder: Path) -> dict[str, Any]:
    network = models.get_model(name, weights=None, num_classes=CLASSES)
    torch.save(network.state_dict(), folder / "it.pth")
    checkpoint = str(folder / "it.pth")
    return {"architecture": f"torchvision:{name}", "checkpoint": checkpoint, "input_size": TORCHVISION[name]}


def of_hugging_face(name: str, folder: Path) -> dict[str, Any]:
    import transformers

    kind, arguments = _hugging_face()[name]
    config = getattr(transformers, kind)(num_labels=CLASSES, **arguments)
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder / "it")
    return {"file": f"hf:{folder / 'it'}", "input_size": 64}


MAKERS: dict[str, tuple[Callable[[str, Path], dict[str, Any]], Callable[[], list[str]]]] = {
    "timm": (of_timm, lambda: list(TIMM)),
    "torchvision": (of_torchvision, lambda: list(TORCHVISION)),
    "Hugging Face": (of_hugging_face, lambda: list(_hugging_face())),
}


def audited(library: str, name: str) -> Row:
    """Audit one network and say what became of it."""
    began = time.perf_counter()
    make, _ = MAKERS[library]

    def row(loaded: bool, robustness: bool, features: str | None = None, **why: str) -> Row:
        return Row(library, name, loaded, robustness, features, round(time.perf_counter() - began, 1), **why)

    with TemporaryDirectory() as place:
        torch.manual_seed(0)
        values = {
            "data": {"path": "phantom", "phantom": {"calibration": 30, "audit": 6}},
            "robustness": {"n": 2, "steps": 2, "eps": ["8/255"], "trust": False, "batch_size": 8},
            "classifiers": [{"name": name, **make(name, Path(place))}],
        }
        try:
            (model,) = run_audit(AuditConfig.model_validate(values)).models
        except AuditError as error:
            return row(False, False, refused=str(error))
        except Exception as error:  # noqa: BLE001 - that is what is counted
            return row(False, False, traceback=f"{type(error).__name__}: {error}")
    measured = bool(model.robust.pgd) and model.failed is None
    features = None if model.input is None else model.input.features
    if model.failed is None:
        return row(True, measured, features)
    # A failure that is no sentence of ours begins with the class of the error.
    foreign = re.match(r"\w*(Error|Exception)\b", model.failed.why) is not None
    loaded = model.failed.stage != "loading"
    return row(loaded, measured, features, **{"traceback" if foreign else "refused": model.failed.why})


def run(out: Path, only: list[str]) -> None:
    """Audit every network that is not in `out` yet, or those of `only` again."""
    rows = {(one["library"], one["name"]): one for one in _read(out)}
    for library, (_, names) in MAKERS.items():
        for name in names():
            if (name in only) if only else ((library, name) not in rows):
                found = audited(library, name)
                rows[library, name] = asdict(found)
                print(json.dumps(rows[library, name]), flush=True)
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(list(rows.values()), indent=1))


def _read(out: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(out.read_text()) if out.is_file() else []
    return found


def table(rows: list[Mapping[str, Any]]) -> str:
    """Return the table of benchmarks/README.md: counts a library, then what was refused or has no layer's features."""
    lines = [
        "| library | networks | loaded | robustness | with features | refused in a sentence | tracebacks |",
        "|---|---|---|---|---|---|---|",
    ]
    for library in [*MAKERS, "all"]:
        own = [one for one in rows if library in (one["library"], "all")]
        counts = [
            len(own),
            *(sum(bool(one[key]) for one in own) for key in ("loaded", "robustness")),
            sum(one["features"] not in (None, "logits") for one in own),
            *(sum(bool(one[key]) for one in own) for key in ("refused", "traceback")),
        ]
        lines.append(f"| {' | '.join(map(str, [library, *counts]))} |")
    for one in rows:
        if one["refused"] or one["traceback"]:
            lines.append(f"\n{one['library']}, {one['name']}: {one['refused'] or one['traceback']}")
        elif one["features"] in (None, "logits"):
            lines.append(f"\n{one['library']}, {one['name']}: its features are its logits")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument("--out", type=Path, default=Path("runs/zoo.json"))
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    if given.command == "run":
        run(given.out, given.only)
    print(table(_read(given.out)))


if __name__ == "__main__":
    main()
