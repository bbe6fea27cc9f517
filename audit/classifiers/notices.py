"""What a reader has to know of how a classifier was loaded before its numbers: guesses, and what its answers are."""

import json
from collections.abc import Iterator
from typing import Any

from audit.classifiers.checkpoint import Checkpoint
from audit.classifiers.classifier import Classifier
from audit.classifiers.input_settings import InputSettings
from audit.config import ClassifierConfig


def notices_of_architecture(checkpoint: Checkpoint, config: ClassifierConfig) -> Iterator[tuple[str, str]]:
    """Yield that the checkpoint's metadata name another architecture than the configuration; its weights fit both."""
    theirs, ours = checkpoint.about.get("architecture"), config.architecture
    if isinstance(theirs, str) and ours is not None and ours.split(".")[0] != theirs.split(".")[0]:  # timm's NAME.TAG
        yield (
            "against-checkpoint",
            f"the configuration sets architecture = {_toml(ours)}, which is taken, where the "
            f"checkpoint's own metadata say {_toml(theirs)}: remove architecture to go by the checkpoint",
        )


def notices_of(
    classifier: Classifier, settings: InputSettings, image_shape: tuple[int, int, int]
) -> Iterator[tuple[str, str]]:
    """Yield kind and text of what is to be known of a loaded classifier; `image_shape` (C, H, W) is the data's."""
    yield from _notices_of_input(classifier, settings, image_shape)
    yield from _notices_of_answer(classifier)
    yield from _notices_of_behaviour(classifier)


def _notices_of_input(
    classifier: Classifier, settings: InputSettings, image_shape: tuple[int, int, int]
) -> Iterator[tuple[str, str]]:
    """Yield notices of input settings: the checkpoint's that the configuration overrules, and those that nobody gives.

    The latter are timm's that the data contradict, and half a normalisation.
    """
    said = settings.origins
    for key, theirs in settings.overruled.items():
        yield (
            "against-checkpoint",
            f"the configuration sets {key} = {_toml(getattr(settings, key))}, which is taken, where the checkpoint's "
            f"own metadata say {_toml(theirs)}: remove {key} to go by the checkpoint",
        )
    channels, height, width = image_shape
    by_timm = [key for key in ("input_size", "channels", "mean", "std") if said.get(key) in ("timm", "library")]
    whose = "its library's" if "library" in said.values() else "timm's"
    guessed = []
    if "input_size" in by_timm and (height, width) != classifier.input_shape[1:]:
        guessed.append(
            f"images of {height} x {width} are enlarged or reduced to {settings.input_size} x {settings.input_size}"
        )
    if "channels" in by_timm and channels != classifier.input_shape[0]:
        guessed.append(f"images of {channels} channel(s) are given as {classifier.input_shape[0]}")
    if guessed and "mean" in by_timm:
        guessed.append(f"mean and std are those of {whose} own weights")
    keys = {"input_size": "input_size", "channels": "channels", "mean": "mean and std"}
    if guessed:
        unsaid = " and ".join(keys[key] for key in keys if key in by_timm)
        yield (
            "input-guessed",
            f"nobody says how this network wants its images, so that {whose} settings are taken: "
            f"{'; '.join(guessed)}. Set {unsaid} to what it was trained with",
        )
    missing = [key for key in ("mean", "std") if key not in said]
    if len(missing) == 1:
        # Where both are missing, the first look at the answers (robustness.sanity) tries other normalisations.
        taken = "mean 0" if missing == ["mean"] else "std 1"
        yield (
            "half-normalised",
            f"nobody gives {missing[0]}, so that {taken} is taken. Set it to what it was trained with",
        )


def _notices_of_answer(classifier: Classifier) -> Iterator[tuple[str, str]]:
    answer, behind, names = classifier.answer, classifier.network.behind, classifier.input.classes
    above = f"probability {0.5 if answer.threshold is None else answer.threshold:g}"
    if not classifier.differentiable:
        yield (
            "black-box",
            "it is a black box, of which only the answers are known: what follows gradients is not computed, and the "
            "attacks that do without see less, so that its robust accuracy is comparable with that of no other model",
        )
    if classifier.left_out:
        logits = (
            ""
            if answer.independent
            else (
                ", whose logits alone are compared: what it would give to other classes goes to these in proportion to "
                "their own probabilities, so that an image of another class is answered with one of these"
            )
        )
        yield (
            "classes-left-out",
            f"it knows {len(names) + classifier.left_out} classes, of which the data have {len(names)}{logits}",
        )
    if answer.single:
        yield (
            "single-logit",
            f"it gives one number per image, which is taken to speak for '{names[1]}', the second of its classes: "
            f"above {above} it decides for that, else for '{names[0]}'. Where it speaks for '{names[0]}', set "
            f'classes = ["{names[1]}", "{names[0]}"]',
        )
    if answer.threshold is not None:
        yield (
            "threshold",
            f"it decides for '{names[1]}' above {above}: the logit of that class is moved by {answer.shift:+.3g}, the "
            "log-odds of the threshold, and all probabilities are those of the moved logits",
        )
    if behind is not None:
        yield (
            "logits-in-front",
            f"it gives the {behind} of a linear layer's output: its logits are read in front of that, where they do "
            "not saturate. Its decisions are the same",
        )
    if answer.scale == "probabilities":
        taken = "log-odds" if answer.independent else "logarithms"
        blind = (
            "Where they saturate at 0 or 1 they have no gradient, and attacks see less; give the network without its "
            "last softmax or sigmoid if you can"
            if classifier.differentiable
            else "Where they are rounded, and at 0 or 1, attacks by answers see less; let it answer with all digits if "
            "you can"
        )
        yield "probabilities", f"it gives probabilities: their {taken} are taken for logits. {blind}"


def _notices_of_behaviour(classifier: Classifier) -> Iterator[tuple[str, str]]:
    seen = classifier.behaviour()
    mode = "; it was exported in training mode, it seems: export it after model.eval()" if classifier.is_program else ""
    if seen.random:
        yield (
            "random-forward",
            "its forward draws at random (noise, or dropout that is active), so that the same image is answered "
            f"differently each time: every number is that of one draw{mode}",
        )
    if seen.batch_dependent:
        yield (
            "batch-dependent",
            "its answer to an image depends on the other images of the batch (a batch norm without running statistics, "
            f"or one in training mode), so that every number depends on the batch size{mode}",
        )


def _toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
