"""The report's tables of input settings: what each model got, where each came from, and what others would do."""

from collections.abc import Sequence
from dataclasses import dataclass

from audit.results import ModelInput, ModelResult, Reading

ORIGINS = {
    "configuration": "configuration",
    "checkpoint": "checkpoint",
    "container": "its own description",
    "timm": "timm's default",
    "library": "its library's default",
    "data": "as the data",
    "default": "nobody gave any",
}
SHOWN_CLASSES = 12


@dataclass(frozen=True)
class Setting:
    """One setting of a model's input: its heading, its value and where it came from, '' where that is plain."""

    heading: str
    value: str
    origin: str


def numbers(values: Sequence[float]) -> str:
    """Return per-channel numbers, once where they are the same for all channels."""
    shown = values[:1] if len(set(values)) == 1 else values
    return ", ".join(f"{value:.4g}" for value in shown)


def classes(names: Sequence[str]) -> str:
    """Return class names in their order, the first few of many."""
    if len(names) <= SHOWN_CLASSES:
        return ", ".join(names)
    return f"{', '.join(names[:SHOWN_CLASSES])}, ... ({len(names)} classes)"


def settings(given: ModelInput) -> list[Setting]:
    """Return every setting of a model's input in the order of the table, with its origin in words."""
    shown = {
        "size": ("Size", f"{given.size[0]} x {given.size[1]}"),
        "channels": ("Channels", str(given.channels)),
        "mean": ("Mean", numbers(given.mean)),
        "std": ("Std", numbers(given.std)),
        "classes": ("Classes, in the order of its outputs", classes(given.classes)),
        "weights": ("Weights", given.weights),
        "answer": ("What is read of its answer", given.answer),
        "features": ("Features", given.features or ""),
    }
    return [
        Setting(heading, value, ORIGINS.get(given.origins.get(key, ""), "")) for key, (heading, value) in shown.items()
    ]


def headings() -> list[str]:
    """Return the headings of the table, as `settings` orders its values."""
    empty = ModelInput(size=(0, 0), channels=1, mean=[0], std=[1], classes=[], weights="", origins={})
    return [one.heading for one in settings(empty)]


def input_line(model: ModelResult) -> str:
    """Return one line for a console: what the model was given and where each part of that came from; '' if unknown."""
    if model.input is None:
        return ""
    size, channels, mean, std, order, weights, answer, _ = settings(model.input)
    parts = [
        (size.value, size),
        (f"{channels.value} channel{'s' if model.input.channels > 1 else ''}", channels),
        *([] if mean.origin == std.origin else [(f"mean {mean.value}", mean)]),
        (f"std {std.value}" if mean.origin != std.origin else f"mean {mean.value}, std {std.value}", std),
        (f"classes {order.value}", order),
        *([] if answer.value == "logits" else [(f"read is {answer.value}", answer)]),
    ]
    told = [words + (f" ({one.origin})" if one.origin else "") for words, one in parts]
    return f"Input of {model.name}: {'; '.join([*told, f'weights {weights.value}'])}"


def assumed_reading(model: ModelResult) -> Reading | None:
    """Return the reading that the audit rests on, or None where none was measured."""
    return next((one for one in model.sanity if one.assumed and one.not_tried is None), None)


def best_other(model: ModelResult) -> Reading | None:
    """Return the best of the other readings, those that are better by more than chance first; None if none ran."""
    assumed = assumed_reading(model)
    others = [one for one in model.sanity if not one.assumed and one.accuracy.value is not None]
    if assumed is None or not others:
        return None
    return max(others, key=lambda one: (one.better, one.accuracy.value or 0))


def tried(model: ModelResult) -> int:
    """Return how many readings beside the assumed one gave answers."""
    return sum(not one.assumed and one.not_tried is None for one in model.sanity)
