"""Presets of a classifier's training: the settings of the SPRUCE thesis, section 6.2.1 and Tables 6.2 and 6.4.

A preset fills what the file leaves out. `key = false` takes a key of the preset back to the default without a preset.
Where the thesis is silent (momentum terms, gradient clipping, how often to validate) the ordinary defaults stand. One
thing differs: the thesis stops early by validation loss, here it is the score that the checkpoint is chosen by.
"""

from collections.abc import Mapping
from typing import Any

from audit.config import eps_value

Table = Mapping[str, Any]

_DATA: Table = {"channels": 3}
_OBJECTIVE: Table = {"label_smoothing": 0.05, "class_weights": "balanced"}
_OPTIMISER: Table = {"epochs": 100, "warmup": 0.1, "weight_decay": 5e-2, "precision": "bfloat16"}
_SELECTION: Table = {"every_epochs": 1, "patience": 20}
_AUGMENTATION: Table = {
    "crop": 0.75,
    "flip": 0.3,
    "rotation": 10,
    "translation": 0.02,
    "scaling": 0.05,
    "shear": 5,
    "brightness": 0.2,
    "contrast": 0.2,
}
_COMMON: Table = {
    "architecture": "convnext_base.fb_in1k",
    "initial": "timm",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "data": _DATA,
    "selection": _SELECTION,
    "augmentation": _AUGMENTATION,
}
PRESETS: Mapping[str, Table] = {
    "spruce-plain": {
        **_COMMON,
        "objective": {"kind": "plain", **_OBJECTIVE},
        "optimiser": {"lr": 5e-4, "batch_size": 64, **_OPTIMISER},
    },
    "spruce-trades": {
        **_COMMON,
        "objective": {"kind": "trades", "eps": "8/255", "beta": 6.0, "steps": 10, **_OBJECTIVE},
        "optimiser": {"lr": 1e-4, "batch_size": 16, **_OPTIMISER},
    },
}
"""The values by preset; `objective.step_size` of spruce-trades is a quarter of the radius, whatever that is."""
STEP_SHARE = 1 / 4
INSTEAD = {("optimiser", "steps"): "epochs", ("selection", "every"): "every_epochs"}
"""Keys whose being given takes the place of another key of the same table."""


def _merged(preset: Table, given: Table) -> dict[str, Any]:
    """Fill `given` from `preset`, table by table."""
    out = dict(given)
    for key, value in preset.items():
        if isinstance(value, Mapping):
            own = given.get(key, {})
            out[key] = _merged(value, own) if isinstance(own, Mapping) else own
        elif key not in given:
            out[key] = value
        elif given[key] is False:
            del out[key]
    return out


def with_preset(given: Table) -> dict[str, Any]:
    """Return the values of a training's file with those of its `preset` where it says nothing; as is without one."""
    name = given.get("preset")
    if not isinstance(name, str) or name not in PRESETS:
        return dict(given)
    preset = {k: dict(v) if isinstance(v, Mapping) else v for k, v in PRESETS[name].items()}
    for (table, key), replaced in INSTEAD.items():
        own = given.get(table, {})
        if isinstance(own, Mapping) and own.get(key) is not None and replaced not in own:
            del preset[table][replaced]
    merged = _merged(preset, given)
    objective = merged["objective"]
    if isinstance(objective, dict) and objective.get("kind") != "plain" and "step_size" not in objective:
        try:
            objective["step_size"] = eps_value(str(objective.get("eps"))) * STEP_SHARE
        except (ValueError, ZeroDivisionError):
            return merged  # an eps that is no number is refused by the schema, in its own words
    return merged
