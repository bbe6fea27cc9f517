"""The usual mistakes in how a network is given its images: every other input it may have been trained on.

An audit that gives a network other pixels than it was trained on, or names its outputs wrongly, ends without an error
and with numbers of another network. A *reading* is one assumption about both: size, mean and standard deviation, order
of the channels, order of the classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import timm
from torch import Tensor

from audit.classifiers.classifier import Classifier

REFUSED = "the network does not take it"
"""How the reason begins of a view that the network refuses."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
IMAGENET_GREY = ((0.449,), (0.226,))
"""Means over the three channels, as grey networks use them."""

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation in units of pixels in [0, 1], one number a channel."""


@dataclass(frozen=True)
class View:
    """What becomes of images before a network; `blue_first` turns the three channels round before mean and std."""

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    blue_first: bool = False

    def of(self, classifier: Classifier, images: Tensor) -> Tensor:
        """Return `images` `[N, 1 or 3, h, w]` in [0, 1] as this view gives them to the network of `classifier`."""
        if self != assumed_view(classifier):
            classifier = classifier.with_input(
                mean=self.mean, std=self.std, size=self.size, reversed_channels=self.blue_first
            )
        return classifier.prepare(images)


@dataclass(frozen=True)
class Candidates:
    """Everything that is compared: the assumed view and order first in either list, then the others with their names.

    A view is named by what it changes; `free` views cost no more than the assumed one, `dear` ones have another size.
    An order holds, for each output of the network, the index of its class in the data.
    """

    free: tuple[tuple[str, View], ...]
    dear: tuple[tuple[str, View], ...]
    orders: tuple[tuple[str, tuple[int, ...]], ...]


def rounded(values: Sequence[float]) -> tuple[float, ...]:
    """Return `values` without the digits that float32 adds."""
    return tuple(round(float(v), 7) for v in values)


def assumed_view(classifier: Classifier) -> View:
    """Return the view that the audit gives the network."""
    given = classifier.input
    return View(given.size, rounded(given.mean), rounded(given.std))


def _normalisations(
    channels: int, own: Normalisation | None, timms: Normalisation | None
) -> list[tuple[str, Normalisation]]:
    """Return the usual normalisations for `channels` channels, the plainest first."""
    imagenet = IMAGENET if channels == 3 else IMAGENET_GREY
    byte = (1 / 255,) * channels
    listed: list[tuple[str, Normalisation | None]] = [
        ("no normalisation", ((0.0,) * channels, (1.0,) * channels)),
        ("ImageNet's mean and std", imagenet),
        ("pixels from -1 to 1", ((0.5,) * channels, (0.5,) * channels)),
        ("pixels from 0 to 255", ((0.0,) * channels, byte)),
        ("pixels from 0 to 255 less ImageNet's mean", (imagenet[0], byte)),
        ("timm's mean and std", timms),
        ("mean and std of these images", own),
    ]
    return [(name, (rounded(found[0]), rounded(found[1]))) for name, found in listed if found is not None]


def timm_input(architecture: str | None, channels: int) -> tuple[int | None, Normalisation | None]:
    """Return the size and the normalisation that timm gives `architecture`; None where it says nothing that fits."""
    if architecture is None or not timm.is_model(architecture):
        return None, None
    about = timm.models.get_pretrained_cfg(architecture)
    if about is None:
        return None, None
    mean, std = tuple(about.mean), tuple(about.std)
    if len(mean) != channels:
        alike = len(set(mean)) == 1 and len(set(std)) == 1
        return about.input_size[-1], ((mean[0],) * channels, (std[0],) * channels) if alike else None
    return about.input_size[-1], (mean, std)


def _orders(names: Sequence[str], assumed: Sequence[str]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the orders of classes that networks usually answer in, the assumed one first and unnamed."""
    listed = [
        ("", list(assumed)),
        ("classes in the data's order", list(names)),
        ("classes in code-point order", sorted(names)),
    ]
    if len(names) == 2:
        listed.append(("classes the other way round", list(reversed(assumed))))
    found: dict[tuple[int, ...], str] = {}
    for name, order in listed:
        found.setdefault(tuple(list(names).index(c) for c in order), name)
    return tuple((name, order) for order, name in found.items())


def candidates(
    classifier: Classifier, data_shape: tuple[int, int, int], architecture: str | None, own: Normalisation | None
) -> Candidates:
    """Return the readings of `classifier` worth trying on images of `data_shape` (C, H, W).

    `architecture` is the timm name in the configuration, `own` the mean and std of the images at hand.
    """
    assumed = assumed_view(classifier)
    channels = len(assumed.mean)
    side, timms = timm_input(architecture, channels)
    normalisations = [("", (assumed.mean, assumed.std)), *_normalisations(channels, own, timms)]
    views: dict[View, str] = {}
    for size in (assumed.size, data_shape[1:], None if side is None else (side, side)):
        if size is None:
            continue
        # timm's size is usually the largest: where another was chosen, only what timm gives with it is worth the time.
        chosen = size not in (assumed.size, data_shape[1:]) and classifier.input.origins.get("size") != "data"
        for name, (mean, std) in normalisations:
            if chosen and (mean, std) not in ((assumed.mean, assumed.std), timms):
                continue
            named = ["" if size == assumed.size else f"{size[0]} x {size[1]} pixels", name]
            views.setdefault(View(size, mean, std), ", ".join(part for part in named if part))
    if channels == data_shape[0] == 3:
        for view, name in [(v, n) for v, n in views.items() if v.size == assumed.size]:
            turned = "channels in the order blue, green, red"
            views[replace(view, blue_first=True)] = f"{turned}, {name}" if name else turned
    return Candidates(
        free=tuple((name, view) for view, name in views.items() if view.size == assumed.size),
        dear=tuple((name, view) for view, name in views.items() if view.size != assumed.size),
        # Where it knows more classes than the data have, their names were stated one by one.
        orders=_orders(classifier.class_names, classifier.input.classes)[: 1 if classifier.left_out else None],
    )


def settings_of(
    view: View, order: Sequence[int], assumed: View, assumed_order: Sequence[int], names: Sequence[str]
) -> dict[str, Any]:
    """Return what a classifier's table of the configuration has to say for this reading, as far as keys can say it."""
    found: dict[str, Any] = {}
    if view.size != assumed.size and view.size[0] == view.size[1]:
        found["input_size"] = view.size[0]
    if (view.mean, view.std) != (assumed.mean, assumed.std):
        found["mean"], found["std"] = _shortest(view.mean), _shortest(view.std)
    if tuple(order) != tuple(assumed_order):
        found["classes"] = [names[k] for k in order]
    return found


def _shortest(values: Sequence[float]) -> list[float]:
    """Return one number where it stands for all channels."""
    return [values[0]] if len(set(values)) == 1 else list(values)


def beyond_settings(view: View, assumed: View) -> list[str]:
    """Return what a reading needs that no key of the configuration gives, as instructions."""
    needs = []
    if view.blue_first:
        needs.append("let its factory turn the channels round (`images.flip(1)` before mean and std)")
    if view.size != assumed.size and view.size[0] != view.size[1]:
        needs.append(
            f"give it by a factory and without input_size, so that it receives the images as they are, "
            f"{view.size[0]} x {view.size[1]}"
        )
    return needs
