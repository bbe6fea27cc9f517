"""A first `audit.toml` for a data folder and checkpoints: what can be told by looking is written, the rest is said.

Nothing is guessed in silence: what was seen stands as a comment beside every key, and what could not be told is a line
to fill in.
"""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from audit.classifiers.checkpoint import Checkpoint, is_exported, is_torchscript, read_checkpoint
from audit.classifiers.containers.programs import beyond_arithmetic
from audit.classifiers.recognise import outputs_of, recognised
from audit.config import DataConfig, container_of, is_shipped
from audit.data.audit_set import AuditSet
from audit.data.load import CALIBRATION_SPLITS, look_at_data
from audit.errors import ClassifierError, ConfigError, DataError
from audit.storage import shipped

MASK_FOLDERS = ("masks", "mask", "segmentations", "segmentation", "annotations")
IMAGE_FOLDERS = ("images", "image", "data")
SIDES = (32, 64, 96, 128, 160, 224)
"""Sides that images of various sizes are brought to: the largest that most of them have."""
FOLDER_KINDS = {"config.json": "hf", "configs/metadata.json": "monai"}
WEIGHTS = (".pt", ".pth", ".ckpt", ".pt2", ".safetensors", ".onnx")
"""Endings of files that hold a model and no images."""
USUAL = {1: ((0.5,), (0.5,)), 3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
"""Mean and std that trainings usually normalise grey images by, and those of ImageNet."""
AUDITED = ("test", *CALIBRATION_SPLITS)
"""Splits to audit, in order; the calibration split is then another one."""


@dataclass(frozen=True)
class Draft:
    """The text of an `audit.toml`, what is left to be filled in before `run` accepts it, and what nobody can see."""

    text: str
    open_points: tuple[str, ...]
    unseen: tuple[str, ...]


@dataclass
class _Table:
    """Lines of a table of the file."""

    lines: list[str]
    open_points: list[str] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        self.lines.append(f"# {text}")

    def set(self, key: str, value: object, why: str = "") -> None:
        self.lines.append(f"{key} = {_toml(value)}{f'  # {why}' if why else ''}")


def _toml(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def draft(data: str | None, checkpoints: Sequence[str], folder: Path) -> Draft:
    """Return a configuration for `data` and `checkpoints`, with paths relative to `folder`, where it will lie.

    Raises DataError if the data cannot be read, ConfigError for a checkpoint that is not there.
    """
    images, first = _data(data, folder)
    tables = [first, *_classifiers(checkpoints, images, folder)]
    if data == "phantom":
        generator = ["[generator]", 'path = "shipped:phantom"']
    else:
        generator = [
            "# Counterfactuals are drawn by a generator of such images; without one robustness alone is measured.",
            "# `spruce-audit train generator` makes it (docs/guide.md); then:",
            "# [generator]",
            '# path = "generator/generator.safetensors"',
        ]
    head = ["# An audit of image classifiers. Every key: `spruce-audit schema config`, or docs/configuration.md.", ""]
    measures = ["[robustness]", 'attacks = ["pgd"]  # "ensemble" beside it is stronger and slower']
    blocks = [first.lines, generator, measures, *(table.lines for table in tables[1:])]
    text = "\n".join(head) + "\n" + "\n\n".join("\n".join(block) for block in blocks) + "\n"
    return Draft(
        text,
        tuple(point for table in tables for point in table.open_points),
        tuple(point for table in tables for point in table.unseen),
    )


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _data(data: str | None, folder: Path) -> tuple[AuditSet | None, _Table]:
    table = _Table(["[data]"])
    if data is None:
        table.say('path = "images"  # folder with a sub-folder per class, CSV manifest or .npz')
        table.open_points.append("[data]: name the images in path")
        return None, table
    if data == "phantom":
        table.set("path", data, "the built-in synthetic radiographs")
        return look_at_data(DataConfig(path=data), 0), table
    if Path(data).suffix in WEIGHTS:
        raise ConfigError(f"'{data}' is a model where images are named: give images first, then models.")
    place, masks = _places(Path(data))
    settings = DataConfig(path=str(place), image_size=SIDES[1])
    mixed = False
    try:
        images = look_at_data(settings, 0)
    except DataError as error:
        if "data.channels" not in str(error):
            raise
        images, mixed = look_at_data(settings.model_copy(update={"channels": 3}), 0), True
    counts = [f"{name} {int(images.has(k).sum())}" for k, name in enumerate(images.class_names)]
    table.say(f"{len(images.ids)} images: {', '.join(counts)}.")
    table.set("path", _relative(place, folder))
    _sizes(images, table)
    if mixed:
        table.set("channels", 3, "some images are grey, some in colour")
    else:
        table.say(f"The images are {'grey' if images.image_shape[0] == 1 else 'in colour'}.")
    _splits(images, table)
    if masks is not None:
        table.set("masks", _relative(masks, folder), "where the class's meaning lies, if that is what they show")
    elif not images.regions:
        table.say('masks = "masks"  # if there are any: files called as the images are, of where the finding lies')
    return images, table


def _places(data: Path) -> tuple[Path, Path | None]:
    """Where images and masks lie: a manifest or an .npz in a folder, folders `images` and `masks`, or masks beside."""
    if not data.is_dir():
        return data, None
    inside = [data / name for name in MASK_FOLDERS if (data / name).is_dir()]
    for name in IMAGE_FOLDERS:
        if inside and (data / name).is_dir():
            return data / name, inside[0]
    files = [*sorted(data.glob("*.csv")), *sorted(data.glob("*.npz"))]
    if len(files) == 1:
        return files[0], None
    if len(files) > 1:
        raise DataError(f"Folder '{data}' holds several lists of images ('{files[0].name}', ...): name one of them.")
    if inside:
        raise DataError(
            f"Folder '{inside[0]}' lies among the class folders of '{data}', and would be taken for a class: move it "
            "beside that folder."
        )
    beside = [data.resolve().with_name(f"{data.resolve().name}{sep}{name}") for sep in "-_" for name in MASK_FOLDERS]
    beside += [data.resolve().with_name(name) for name in MASK_FOLDERS]
    return data, next((one for one in beside if one.is_dir()), None)


def _sizes(images: AuditSet, table: _Table) -> None:
    if images.reading is None:
        return
    sizes = images.reading.sizes
    (h0, w0), (h1, w1) = sizes.min(axis=0).tolist(), sizes.max(axis=0).tolist()
    if (h0, w0) == (h1, w1) and h0 == w0:
        table.say(f"image_size = {h0}  # all images are {w0} x {h0}; another side resizes them")
        return
    usual = float(np.median(sizes.min(axis=1)))
    side = max([one for one in SIDES if one <= usual], default=SIDES[0])
    table.say(f"They are {w0} to {w1} wide and {h0} to {h1} high, and resized to one square: best to the size that the")
    table.say("models were trained with. (A generator draws a power of two, such as 64 or 128.)")
    table.set("image_size", side)


def _splits(images: AuditSet, table: _Table) -> None:
    present = dict(zip(*(part.tolist() for part in np.unique(images.splits, return_counts=True)), strict=True))
    audited = next((name for name in AUDITED if name in present), next(iter(present)))
    if "divided" in images.source:
        table.say("They are in no splits: half of them, drawn by the seed, are audited and the others calibrate.")
        return
    table.say(f"Splits: {', '.join(f'{name} {n}' for name, n in present.items())}.")
    if audited != "test":
        table.set("audit_split", audited)
    if not set(CALIBRATION_SPLITS) & (set(present) - {audited}) and (others := sorted(set(present) - {audited})):
        table.set("calibration_split", others[0], "images to learn from what is usual; not those that are audited")


def _classifiers(checkpoints: Sequence[str], images: AuditSet | None, folder: Path) -> Iterator[_Table]:
    taken: set[str] = set()
    for place in checkpoints:
        own = place.partition(":")[2] if is_shipped(place) else Path(place).stem.split(".")[0]
        name = next(n for n in (own, *(f"{own}-{i}" for i in range(2, len(checkpoints) + 2))) if n not in taken)
        taken.add(name)
        table = _Table(["[[classifiers]]"])
        table.set("name", name)
        try:
            _classifier(place, images, folder, table)
        except ClassifierError as error:
            table.say(str(error))
            table.open_points.append(f"classifier '{name}': {error}")
        yield table
    if not checkpoints:
        table = _Table(["# [[classifiers]]"])
        for line in ('name = "resnet"', 'architecture = "resnet18"  # a timm name', 'checkpoint = "resnet18.pt"'):
            table.say(line)
        table.open_points.append("[[classifiers]]: name at least one model, or give checkpoints to init")
        yield table


def _classifier(place: str, images: AuditSet | None, folder: Path, table: _Table) -> None:
    """Write where a model's weights are and what is known of its architecture."""
    if is_shipped(place):
        shipped.locate("classifiers", place)  # fails here if there is none of the name
        table.set("checkpoint", place)
        return
    kind, path = container_of(place) or (None, place)
    file = Path(path)
    if kind is not None:
        table.set("file", f"{kind}:{_relative(file, folder) if file.exists() else path}")
        return
    if not file.exists():
        raise ConfigError(f"Checkpoint '{file}' does not exist: check the path.")
    if file.is_dir():
        kind = next((one for inside, one in FOLDER_KINDS.items() if (file / inside).is_file()), None)
        if kind is None:
            raise ClassifierError(
                f"Folder '{file}' is neither Hugging Face's nor a MONAI bundle: name the file of weights."
            )
        table.set("file", f"{kind}:{_relative(file, folder)}", f"needs `pip install 'spruce-audit[{kind}]'`")
        return
    if file.suffix == ".onnx" or is_torchscript(file) or is_exported(file):
        table.set("file", _relative(file, folder))
        more = None if file.suffix == ".onnx" else beyond_arithmetic(file)
        if more is not None:
            table.say("allow_code = true  # it does more than compute, whatever you can: only if you trust its maker")
            table.open_points.append(
                f"classifier '{file.name}' is a program with {more}: allow it by allow_code = true, if you trust it"
            )
        return
    checkpoint = read_checkpoint(file)
    table.set("checkpoint", _relative(file, folder))
    if isinstance(checkpoint.about.get("architecture"), str):
        said = ", ".join(
            f"{key} {_toml(value)}" for key, value in checkpoint.about.items() if key != "architecture_args"
        )
        table.say(f"Its metadata say the rest: {said}.")
        return
    _architecture(checkpoint, file.name, images, table)


def _architecture(checkpoint: Checkpoint, file_name: str, images: AuditSet | None, table: _Table) -> None:
    outputs, found = outputs_of(checkpoint), recognised(checkpoint, file_name)
    called = table.lines[1].partition(" = ")[2]
    if found:
        name, args = found[0]
        same = ", ".join(other for other, _ in found[1:4])
        others = f"; {same} {'have' if len(found) > 2 else 'has'} the same shapes" if same else ""
        table.set("architecture", name, f"told by the names and shapes of its tensors{others}")
        if args:
            table.lines.append(f"architecture_args = {{ {', '.join(f'{k} = {_toml(v)}' for k, v in args.items())} }}")
    else:
        table.say('architecture = "..."  # as given to timm.create_model; or factory = "nets.py:make" of your own')
        table.open_points.append(
            f"classifier {called}: its architecture could not be told: set architecture, as given to "
            "timm.create_model, or factory"
        )
    mean, std = USUAL[3 if images is None else images.image_shape[0]]
    table.say("How its training prepared the images; without these lines timm's settings are taken, else the data's.")
    table.say(f"mean = {_toml(list(mean))}  # as in Normalize of torchvision")
    table.say(f"std = {_toml(list(std))}")
    table.say("input_size = 224  # side of the images that it was trained with")
    table.unseen.append(f"classifier {called}: mean, std and input_size, as in its training")
    if outputs is not None and images is not None and outputs != len(images.class_names):
        single = outputs == 1 and len(images.class_names) == 2
        verdict = (
            "one number, for the second class" if single else f"{outputs} outputs for {len(images.class_names)} classes"
        )
        table.say(f"It gives {verdict}.")
    elif images is not None:
        table.say(f"classes = {_toml(list(images.class_names))}  # if its outputs are in another order: in theirs")
