"""What has to be known of a model before its numbers are believed, as sentences: its input, its order, its answers.

Pure functions from results to notices. Each says what was seen, what it means and which key mends it; none is raised by
a network that is given its images as it was trained on and answers better than chance, but for one short sentence where
nobody gave mean and std or named the classes, for then only the owner knows.
"""

import json
from collections.abc import Sequence

from torch import Tensor

from audit.metrics.exact import below_p
from audit.results import ModelInput, Notice, Reading
from audit.robustness.sanity.readings import REFUSED

ONE_CLASS = 0.99
"""A model that gives this share of all images one answer decides nothing, where the data have more classes than one."""
BELOW_CHANCE = 1e-3
"""Largest p-value at which accuracy is called below chance."""
ENLARGED = 1.5
DISTORTED = 1.2
ALPHA = 0.05
"""Largest p-value at which an order of classes that somebody wrote down counts as confirmed by the images."""
SAME = 0.01
"""Readings within one point of the best are told apart by nothing but how much they change."""


def percent(share: float | None) -> str:
    """Return a share in percent with one decimal."""
    return "-" if share is None else f"{100 * share:.1f} %"


def best_reading(readings: Sequence[Reading]) -> Reading | None:
    """Return the better reading to tell of, or None: of those about as good as the best, the one that changes least."""
    better = [one for one in readings if one.better and one.accuracy.n == readings[0].accuracy.n]
    if not better:
        return None
    top = max(one.accuracy.value or 0 for one in better)
    near = [one for one in better if (one.accuracy.value or 0) >= top - SAME]
    return min(near, key=lambda one: len(one.settings) + len(one.beyond_settings))


def as_keys(reading: Reading) -> str:
    """Return what makes `reading` the assumed one, as a list of settings in TOML and of instructions."""
    keys = [f"`{key} = {json.dumps(value, ensure_ascii=False)}`" for key, value in reading.settings.items()]
    parts = [f"set {', '.join(keys)} in its [[classifiers]] table"] if keys else []
    return " and ".join([*parts, *reading.beyond_settings])


def input_notices(
    name: str,
    given: ModelInput,
    readings: Sequence[Reading],
    data_shape: tuple[int, int, int],
    names: Sequence[str],
    *,
    stated: bool = False,
) -> list[Notice]:
    """Return what is doubtful about how model `name` is given its images and how its outputs are named.

    `data_shape` (C, H, W) and `names` are those of the data, `stated` says that somebody wrote the names' order down
    (it was not sorted out of folders); `readings` are those of `sanity.read_otherwise`.
    """
    best = best_reading(readings)
    told = set() if best is None else set(best.settings)
    notices = [] if best is None else [Notice(subject=name, kind="other-reading-better", text=_better(best, readings))]
    if not told & {"mean", "std"} and (text := _no_normalisation(given, readings)):
        notices.append(Notice(subject=name, kind="no-normalisation-given", text=text))
    if "input_size" not in told and (text := _guessed_size(given, readings, data_shape)):
        notices.append(Notice(subject=name, kind="guessed-size", text=text))
    if "classes" not in told and (text := _doubtful_order(given, readings, names, stated)):
        notices.append(Notice(subject=name, kind="class-order", text=text))
    return notices


def _better(best: Reading, readings: Sequence[Reading]) -> str:
    assumed = readings[0].accuracy
    tried = sum(one.not_tried is None for one in readings) - 1
    equals = [
        one.name for one in readings if one.better and one is not best and one.accuracy.value == best.accuracy.value
    ]
    also = f" (as good: {equals[0]})" if equals else ""
    return (
        f"with {best.name} it is right on {percent(best.accuracy.value)} of {best.accuracy.n} images, as audited on "
        f"{percent(assumed.value)}, more than chance explains among {tried} other readings{also}. If it was trained "
        f"that way, {as_keys(best)}; the audit changed nothing, and all its numbers are of the input as it was."
    )


def _no_normalisation(given: ModelInput, readings: Sequence[Reading]) -> str:
    silent = [key for key in ("mean", "std") if given.origins.get(key) == "default"]
    if not silent:
        return ""
    others = sum(one.not_tried is None for one in readings[1:])
    none = others > 0 and not any(one.better for one in readings)
    evidence = f"; of {others} other readings of its input none is better by more than chance" if none else ""
    what = "mean and std" if len(silent) == 2 else silent[0]
    return (
        f"nobody gave its {what}, so the network receives pixels {_range(given)}{evidence}. Unless it was trained so "
        "or normalises them by itself, set `mean` and `std`."
    )


def _range(given: ModelInput) -> str:
    if set(given.mean) == {0.0} and set(given.std) == {1.0}:
        return "in [0, 1] as they are"
    return f"in [0, 1], less {given.mean} and divided by {given.std}"


def _takes_no_other(readings: Sequence[Reading]) -> bool:
    """Whether the network refused every other size that was tried."""
    sized = [one.not_tried for one in readings if "input_size" in one.settings]
    return bool(sized) and all(why is not None and why.startswith(REFUSED) for why in sized)


def _guessed_size(given: ModelInput, readings: Sequence[Reading], data_shape: tuple[int, int, int]) -> str:
    """A size that timm, and nobody else, gave, and that makes much of what the data do not hold."""
    if given.origins.get("size") != "timm":
        return ""
    (height, width), (_, own_height, own_width) = given.size, data_shape
    enlarged = height * width > ENLARGED**2 * own_height * own_width
    ratio = (width / height) / (own_width / own_height)
    distorted = max(ratio, 1 / ratio) > DISTORTED
    if (not enlarged and not distorted) or _takes_no_other(readings):
        return ""
    how = " and ".join([*(["enlarged"] if enlarged else []), *(["distorted"] if distorted else [])])
    remedy = (
        f"set `input_size = {own_height}` if it was trained on images of their own size, `input_size = {height}` if not"
        if own_height == own_width
        else f"set `input_size = {height}` if it was trained so"
    )
    return (
        f"nobody gave its input_size: timm's {height} x {width} is taken, to which the data's {own_height} x "
        f"{own_width} pixels are {how}; {remedy}."
    )


def _doubtful_order(given: ModelInput, readings: Sequence[Reading], names: Sequence[str], stated: bool) -> str:
    if given.origins.get("classes") not in ("data", "default") or list(names) == sorted(names):
        return ""
    found = ""
    other = next((one for one in readings if one.settings == {"classes": sorted(names)}), None)
    if other is not None and other.accuracy.value is not None and not other.beyond_settings:
        here, there = readings[0].accuracy.value or 0.0, other.accuracy.value
        if stated and here > there and (other.p_value or 0) <= ALPHA:
            return ""
        found = f" Here {percent(here)} are right in the former, {percent(there)} in the latter."
    return (
        f"it names no classes, and its outputs are taken in the order {_listed(names)}; torchvision's ImageFolder, "
        f"which sorts by code point, has {_listed(sorted(names))}.{found} Set `classes` to the order in which it "
        "answers."
    )


def _listed(names: Sequence[str]) -> str:
    shown = list(names) if len(names) <= 12 else [*names[:10], f"... ({len(names)} classes)"]
    return ", ".join(shown)


def answer_notices(name: str, predicted: Tensor, labels: Tensor, names: Sequence[str]) -> list[Notice]:
    """Return what is wrong with the answers of model `name`, `predicted` and `labels` int64 `[N]`.

    It answers one class only, or is right less often than guessing would be.
    """
    if len(labels) == 0 or labels.unique().numel() < 2:
        return []
    notices = []
    counts = predicted.bincount(minlength=len(names))
    top = int(counts.argmax())
    answered = float(counts[top]) / len(predicted)
    held = float((labels == top).double().mean())
    # Where nearly all images are of one class, a good model answers it nearly always.
    if answered == 1 or answered >= ONE_CLASS > held:
        share = "all" if answered == 1 else percent(answered)
        notices.append(
            Notice(
                subject=name,
                kind="one-class",
                text=f"it answers '{names[top]}' on {share} of {len(labels)} images, of which {percent(held)} are of "
                "that class: it decides nothing, and its numbers say nothing of its robustness or its reasons. Check "
                "mean, std, input_size and the weights.",
            )
        )
    right, n, chance = int((predicted == labels).sum()), len(labels), 1 / len(names)
    if below_p(right, n, chance) <= BELOW_CHANCE:
        notices.append(
            Notice(
                subject=name,
                kind="below-chance",
                text=f"it is right on {percent(right / n)} of {n} images, far below the {percent(chance)} of guessing: "
                "probably its outputs stand for other classes. Check the order of `classes`, and the labels.",
            )
        )
    return notices
