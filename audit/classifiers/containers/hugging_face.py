"""`hf:FOLDER`: an image classifier of Hugging Face as `save_pretrained` writes it.

That is a folder with config.json, model.safetensors and the processor's preprocessor_config.json.

Only local files are read, weights from safetensors alone, and code that comes with a model is never run.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from audit.classifiers.checkpoint import existing_file
from audit.classifiers.input_settings import InputSettings
from audit.classifiers.loaded import Loaded, Request, missing_package
from audit.classifiers.probe import first_line
from audit.errors import ClassifierError

UNNAMED = re.compile(r"LABEL_\d+")
"""Names of classes that transformers writes where nobody named them."""
MAX_DEPTH = 100


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; raises ClassifierError if the file holds anything else."""
    try:
        found = json.loads(existing_file(file, "File").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ClassifierError(f"File '{file}' is not readable JSON ({first_line(error)}): copy it again.") from None
    if not isinstance(found, dict):
        raise ClassifierError(f"File '{file}' holds no JSON object: copy it again.")
    level, depth = [found], 0
    while level := [v for one in level for v in (one.values() if isinstance(one, dict) else one) if _has_parts(v)]:
        depth += 1
        if depth > MAX_DEPTH:  # readers follow it by recursion
            raise ClassifierError(f"File '{file}' nests its values deeper than {MAX_DEPTH}: copy it again.")
    return found


def _has_parts(value: object) -> bool:
    return isinstance(value, dict | list)


def understood(settings_of: Callable[[Any], InputSettings], said: Any, file: Path) -> InputSettings:
    """Return `settings_of(said)`, what `file` says; raises ClassifierError where that is of another form."""
    try:
        return settings_of(said).with_origin("container")
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ClassifierError(
            f"File '{file}' says of the images what cannot be understood ({first_line(error)}): correct or remove it."
        ) from None


def _side(size: object) -> int | None:
    """Side of a square that a processor's `size` or `crop_size` stands for; None for other shapes."""
    if isinstance(size, int):
        return size
    if not isinstance(size, Mapping):
        return None
    height, width = (size.get(key, size.get("shortest_edge")) for key in ("height", "width"))
    return height if isinstance(height, int) and height == width else None


def settings_of_processor(said: Mapping[str, Any]) -> InputSettings:
    """Return what a processor's configuration says of size and normalisation, in units of pixels in [0, 1].

    A processor takes pixels from 0 to 255, multiplies by `rescale_factor` (and subtracts 1 with `rescale_offset`), then
    subtracts `image_mean` and divides by `image_std`.
    """
    side = _side(said.get("crop_size")) if said.get("do_center_crop") else None
    side = side or _side(said.get("size"))
    scale = 255 * float(said.get("rescale_factor", 1 / 255)) if said.get("do_rescale", True) else 255.0
    offset = 1.0 if said.get("rescale_offset") else 0.0
    normalised = said.get("do_normalize", True) and said.get("image_mean") and said.get("image_std")
    mean, std = (said["image_mean"], said["image_std"]) if normalised else ([0.0], [1.0])
    return InputSettings(
        mean=tuple((float(m) + offset) / scale for m in mean),
        std=tuple(float(s) / scale for s in std),
        input_size=side,
    )


def settings_of_model(config: Any) -> InputSettings:
    """Return what the configuration of a model of transformers says of classes, size and channels."""
    names = [str(config.id2label[i]) for i in range(len(config.id2label))]
    named = None if all(UNNAMED.fullmatch(name) for name in names) else tuple(names)
    side, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    return InputSettings(classes=named, input_size=_side(side), channels=int(channels))


class _LogitsOf(nn.Module):
    """A model of transformers that answers with its logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=images).logits
        return logits


def _read_model(folder: Path) -> nn.Module:
    try:
        from transformers import AutoModelForImageClassification
        from transformers.utils import logging
    except ImportError:
        raise missing_package("hf", f"'hf:{folder.name}'") from None
    logging.set_verbosity_error()
    try:
        model, report = AutoModelForImageClassification.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:
        raise ClassifierError(
            f"Folder '{folder}' cannot be loaded as an image classifier of Hugging Face ({first_line(error)}): it "
            "needs a config.json of a model that transformers itself holds, and its model.safetensors."
        ) from error
    if report["missing_keys"]:
        raise ClassifierError(
            f"The weights in '{folder}' lack '{min(report['missing_keys'])}', which transformers would draw at random: "
            "save the trained classifier, not its backbone, by save_pretrained."
        )
    network: nn.Module = model
    return network


def load(request: Request) -> Loaded:
    """Load the model of a folder; raises ClassifierError."""
    folder = Path(request.place)
    read_json(folder / "config.json")  # a sentence of our own where it is no such folder
    model = _read_model(folder)
    settings, processor = request.given, folder / "preprocessor_config.json"
    if processor.is_file():
        settings = settings.completed_by(understood(settings_of_processor, read_json(processor), processor))
    settings = settings.completed_by(understood(settings_of_model, model.config, folder / "config.json"))
    called = f"hf:{folder.name}"
    return Loaded(_LogitsOf(model), settings, f"{type(model).__name__} of {called}", called)
