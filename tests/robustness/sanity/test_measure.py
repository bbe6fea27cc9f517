"""Every usual mistake in how a network is given its images is found, and a network given rightly is left in peace."""

import json
import sys
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audit.classifiers.classifier import Classifier
from audit.classifiers.slices import Slices
from audit.data.audit_set import AuditSet
from audit.results import Reading
from audit.robustness.sanity.doubts import best_reading
from audit.robustness.sanity.measure import FIRST_IMAGES, MOST_IMAGES, own_normalisation, read_otherwise, sample_of
from audit.robustness.sanity.readings import IMAGENET, View, assumed_view, candidates, timm_input

CPU = torch.device("cpu")
WRONG_LABELS = 0.1
THRESHOLD = 0.3


class Brightness(nn.Module):
    """Class 1 above a mean pixel of 0.3, as one who was trained on (pixels - mean) / std knows it."""

    def __init__(self, mean: float, std: float, channels: int = 1) -> None:
        super().__init__()
        self.head = nn.Linear(channels, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, channels) * 30 * std)
            threshold = 30 * channels * (THRESHOLD - mean)
            self.head.bias.copy_(torch.tensor([threshold, -threshold]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean(dim=(2, 3)))


class Redness(nn.Module):
    """Class 1 where red is stronger than blue; trained on images with blue as the first channel if `blue_first`."""

    def __init__(self, blue_first: bool) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        with torch.no_grad():
            weight = torch.tensor([[-30.0, 0, 30], [30, 0, -30]])
            self.head.weight.copy_(weight.flip(1) if blue_first else weight)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.mean(dim=(2, 3)))


class Fineness(nn.Module):
    """Class 1 for stripes two pixels wide, class 0 for one pixel; it refuses a side that is odd."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[30.0, -30], [-30, 30]]))
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            raise AssertionError("an even side is needed")
        step = [(x[..., k:] - x[..., :-k]).abs().mean(dim=(1, 2, 3)) for k in (1, 2)]
        return self.head(torch.stack(step, dim=1))


def audit_set(images: np.ndarray, labels: np.ndarray, names: Sequence[str] = ("dark", "light")) -> AuditSet:
    _, height, width, channels = images.shape
    return AuditSet(
        read_image=lambda row: images[row],
        labels=labels,
        class_names=tuple(names),
        ids=tuple(str(i) for i in range(len(labels))),
        splits=np.array(["test"] * len(labels)),
        image_shape=(channels, height, width),
    )


def drawn(kind: str, n: int = 150, side: int = 8, names: Sequence[str] = ("dark", "light")) -> AuditSet:
    """Images whose class `kind` tells; one label in ten is wrong, so that there is room for another reading."""
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, n)
    channels = 1 if kind in ("grey", "stripes") else 3
    images = rng.uniform(0.15, 0.45, (n, side, side, channels)).astype(np.float32)
    images -= images.mean(axis=(1, 2), keepdims=True) - THRESHOLD
    sign = (2 * truth - 1)[:, None, None].astype(np.float32)
    if kind == "stripes":
        images[:] = 0.4
        for row, wide in enumerate(truth):
            images[row, :, np.arange(side) // (1 + wide) % 2 == 0] += 0.2
    elif kind == "hue":
        images[..., 0] += 0.05 * sign
        images[..., 2] -= 0.05 * sign
    else:
        images += 0.03 * sign[..., None]
    labels = np.where(rng.random(n) < WRONG_LABELS, 1 - truth, truth)
    return audit_set(images, labels, names)


def classifier(network: nn.Module, data: AuditSet, **settings: object) -> Classifier:
    shape = settings.pop("input_shape", data.image_shape)
    return Classifier(network, name="it", class_names=data.class_names, input_shape=shape, **settings).eval()


def look(model: Classifier, data: AuditSet, architecture: str | None = None) -> list[Reading]:
    return read_otherwise(model, sample_of(data, 0), architecture, CPU)


def told(readings: Sequence[Reading]) -> dict[str, object]:
    best = best_reading(readings)
    assert best is not None, [(r.name, r.accuracy.value) for r in readings]
    assert best.accuracy.value > 0.85 > readings[0].accuracy.value + 0.05
    return best.settings


NORMALISATIONS = {
    "none": (0.0, 1.0),
    "imagenet": (0.449, 0.226),
    "centred": (0.5, 0.5),
    "bytes": (0.0, 1 / 255),
}


@pytest.mark.parametrize("trained", list(NORMALISATIONS))
@pytest.mark.parametrize("assumed", list(NORMALISATIONS))
def test_a_normalisation_that_the_network_was_not_trained_with_is_told(trained: str, assumed: str) -> None:
    data = drawn("grey")
    mean, std = NORMALISATIONS[assumed]
    readings = look(classifier(Brightness(*NORMALISATIONS[trained]), data, mean=[mean], std=[std]), data)
    assert readings[0].assumed
    assert [r.assumed for r in readings].count(True) == 1
    if trained == assumed:
        assert not any(r.better for r in readings)
        return
    expected = NORMALISATIONS[trained]
    settings = told(readings)
    assert set(settings) == {"mean", "std"}
    assert (*settings["mean"], *settings["std"]) == pytest.approx(expected, abs=1e-6)  # type: ignore[misc]


def test_the_mean_and_std_of_the_images_themselves_are_tried() -> None:
    data = drawn("grey")
    mean, std = own_normalisation(sample_of(data, 0), 1) or ((), ())
    pixels = torch.from_numpy(np.stack([data.read_image(i) for i in range(len(data))]))
    assert mean[0] == pytest.approx(float(pixels.mean()), abs=1e-4)
    assert std[0] == pytest.approx(float(pixels.std()), abs=1e-3)
    readings = look(classifier(Brightness(mean[0], std[0]), data, mean=[0.0], std=[1 / 255]), data)
    assert told(readings) == {"mean": list(mean), "std": list(std)}


def test_constant_images_have_no_normalisation_of_their_own() -> None:
    flat = audit_set(np.full((4, 8, 8, 1), 0.5, np.float32), np.array([0, 1, 0, 1]))
    assert own_normalisation(flat, 1) is None


def test_colour_networks_and_imagenet_by_channel() -> None:
    data = drawn("colour")

    class PerChannel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)
            with torch.no_grad():
                weight = 30 * torch.tensor(IMAGENET[1])
                self.head.weight.copy_(torch.stack([-weight, weight]))
                threshold = 30 * float((THRESHOLD - torch.tensor(IMAGENET[0])).sum())
                self.head.bias.copy_(torch.tensor([threshold, -threshold]))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.mean(dim=(2, 3)))

    readings = look(classifier(PerChannel(), data), data)
    assert told(readings) == {"mean": list(IMAGENET[0]), "std": list(IMAGENET[1])}


def test_channels_in_the_order_of_opencv_are_told_as_what_no_key_gives() -> None:
    data = drawn("hue")
    model = classifier(Redness(blue_first=True), data, mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])
    best = best_reading([r for r in look(model, data) if r.assumed or "classes" not in r.settings])
    assert best is not None
    assert "blue, green, red" in best.name
    assert not best.settings
    assert "flip(1)" in best.beyond_settings[0]
    assert best_reading(look(classifier(Redness(blue_first=False), data), data)) is None


def test_blue_first_is_not_tried_on_grey_images_or_grey_networks() -> None:
    grey, colour = drawn("grey"), drawn("colour")
    for model, data in (
        (classifier(Brightness(0, 1, channels=3), grey, input_shape=(3, 8, 8)), grey),
        (classifier(Brightness(0, 1), colour, input_shape=(1, 8, 8)), colour),
    ):
        assert not any("blue" in r.name for r in look(model, data))


def test_the_size_of_the_data_is_told_where_another_was_assumed() -> None:
    data = drawn("stripes")
    readings = look(classifier(Fineness(), data, input_shape=(1, 16, 16)), data)
    assert told(readings) == {"input_size": 8}
    assert best_reading(look(classifier(Fineness(), data), data)) is None


def test_size_and_normalisation_that_are_both_wrong_are_told_together() -> None:
    data = drawn("stripes")

    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Fineness()
            self.head = nn.Linear(3, 2)
            with torch.no_grad():
                self.head.weight.copy_(torch.tensor([[30.0, -30, 1000], [-30, 30, -1000]]))
                self.head.bias.zero_()

        def forward(self, x: Tensor) -> Tensor:
            off = ((x.mean(dim=(1, 2, 3)) - 0.5).abs() > 0.1).float()
            step = [(x[..., k:] - x[..., :-k]).abs().mean(dim=(1, 2, 3)) for k in (1, 2)]
            return self.head(torch.stack([*step, off], dim=1))

    readings = look(classifier(Head(), data, input_shape=(1, 16, 16), mean=[0.449], std=[0.226]), data)
    assert told(readings) == {"input_size": 8, "mean": [0.0], "std": [1.0]}


def test_a_size_that_is_not_square_is_told_as_what_no_key_gives() -> None:
    square = drawn("stripes")
    images = np.stack([square.read_image(i) for i in range(len(square))])
    data = audit_set(images[:, :6], square.labels)
    best = best_reading(look(classifier(Fineness(), data, input_shape=(1, 16, 16)), data))
    assert best is not None
    assert not best.settings
    assert "6 x 8" in best.beyond_settings[0]


@pytest.mark.parametrize(
    ("names", "answers", "expected"),
    [
        (("normal", "Pneumonia"), ("Pneumonia", "normal"), ["Pneumonia", "normal"]),
        (("b", "a"), ("a", "b"), ["a", "b"]),
        (("left", "right"), ("right", "left"), ["right", "left"]),
    ],
)
def test_another_order_of_two_classes_is_told(
    names: tuple[str, str], answers: tuple[str, str], expected: list[str]
) -> None:
    data = drawn("grey", names=names)
    network = Brightness(0, 1)
    if answers[0] != names[0]:
        with torch.no_grad():
            network.head.weight.copy_(network.head.weight.flip(0))
            network.head.bias.copy_(network.head.bias.flip(0))
    assert told(look(classifier(network, data), data)) == {"classes": expected}
    # Once the names are given in the order of the answers, nothing is left to say.
    order = [answers.index(name) for name in names]
    assert best_reading(look(classifier(network, data, order=order), data)) is None


def test_many_classes_are_tried_in_code_point_order_and_no_other() -> None:
    names = tuple(str(i) for i in range(1, 13))
    labels = np.arange(144) % 12
    images = np.full((144, 8, 8, 1), 0.1, np.float32)
    for row, label in enumerate(labels):
        images[row, label // 4, label % 4] = 1.0
    data = audit_set(images, labels, names)

    class Where(nn.Module):
        def __init__(self, order: Sequence[str]) -> None:
            super().__init__()
            self.head = nn.Linear(64, 12)
            with torch.no_grad():
                self.head.weight.zero_()
                self.head.bias.zero_()
                for output, name in enumerate(order):
                    place = int(name) - 1
                    self.head.weight[output, 8 * (place // 4) + place % 4] = 30.0

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x.flatten(1))

    readings = look(classifier(Where(sorted(names)), data), data)
    best = best_reading(readings)
    assert best is not None
    assert best.settings == {"classes": sorted(names)}
    assert best.accuracy.value == 1.0
    right = look(classifier(Where(names), data), data)
    assert best_reading(right) is None
    assert {json.dumps(r.settings.get("classes")) for r in right} == {"null", json.dumps(sorted(names))}


def test_the_same_order_is_tried_once() -> None:
    data = drawn("grey", names=("a", "b"))
    model = classifier(Brightness(0, 1), data)
    orders = candidates(model, data.image_shape, None, None).orders
    assert [order for _, order in orders] == [(0, 1), (1, 0)]


def test_a_size_that_the_network_refuses_is_recorded_and_not_tried() -> None:
    even = drawn("stripes")
    images = np.stack([even.read_image(i) for i in range(len(even))])[:, :, :7]
    data = audit_set(images[:, :7], even.labels)
    readings = look(classifier(Fineness(), data, input_shape=(1, 16, 16)), data)
    refused = [r for r in readings if "7 x 7" in r.name]
    assert refused
    for one in refused:
        assert one.accuracy.value is None
        assert "an even side is needed" in str(one.not_tried)
        assert not one.better


def test_a_network_that_fails_as_it_is_configured_is_left_to_later_stages() -> None:
    data = drawn("grey")

    class FailsOnDark(Brightness):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 4:
                raise AssertionError("no large batch")
            return super().forward(x)

    readings = look(classifier(FailsOnDark(0, 1), data), data)
    assert all(r.not_tried and r.accuracy.value is None and not r.better for r in readings)
    assert readings[0].assumed
    assert best_reading(readings) is None


def test_a_network_that_ends_the_program_ends_no_audit() -> None:
    data = drawn("grey")

    class Exits(Brightness):
        def forward(self, x: Tensor) -> Tensor:
            if float(x.amax()) > 5:
                sys.exit(3)
            return super().forward(x)

    refused = [r for r in look(classifier(Exits(0, 1), data), data) if r.not_tried]
    assert refused
    assert all("ends the program" in str(r.not_tried) for r in refused)


def test_logits_that_are_not_finite_are_no_answers() -> None:
    data = drawn("grey")

    class Overflows(Brightness):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) / (x.amax(dim=(1, 2, 3)) < 5)[:, None]

    readings = look(classifier(Overflows(0, 1), data), data)
    assert readings[0].not_tried is None
    assert any("not finite" in str(r.not_tried) or "infinite" in str(r.not_tried) for r in readings)


def test_a_good_model_is_not_tried_at_other_sizes() -> None:
    data = drawn("grey")
    model = classifier(Brightness(0, 1), audit_set(*_clean(data)), input_shape=(1, 16, 16))
    readings = look(model, audit_set(*_clean(data)))
    other = [r for r in readings if "8 x 8" in r.name]
    assert other
    assert all("could not be better" in str(r.not_tried) for r in other)
    assert readings[0].accuracy.value == 1.0


def _clean(data: AuditSet) -> tuple[np.ndarray, np.ndarray]:
    images = np.stack([data.read_image(i) for i in range(len(data))])
    return images, (images.mean(axis=(1, 2, 3)) > THRESHOLD).astype(int)


def test_the_assumed_reading_is_what_the_audit_measures() -> None:
    data = drawn("colour")
    model = classifier(Redness(False), data, mean=[0.1, 0.2, 0.3], std=[0.5, 0.6, 0.7], input_shape=(3, 12, 12))
    view = assumed_view(model)
    images = data.images(range(9))
    assert torch.equal(view.of(model, images), model.prepare(images))
    assert torch.equal(View((8, 8), (0.0,) * 3, (1.0,) * 3, blue_first=True).of(model, images), images.flip(1))


def test_few_images_of_a_bad_reading_and_all_of_the_assumed_one() -> None:
    data = drawn("grey", n=MOST_IMAGES + 50)
    readings = look(classifier(Brightness(0, 1), data), data)
    assert readings[0].accuracy.n == MOST_IMAGES
    assert {r.accuracy.n for r in readings if r.name.startswith("pixels")} == {FIRST_IMAGES}
    wrong = look(classifier(Brightness(0, 1), data, mean=[0.5], std=[0.5]), data)
    best = best_reading(wrong)
    assert best is not None
    assert best.accuracy.n == MOST_IMAGES


def test_a_sample_depends_on_the_seed_and_leaves_the_global_stream_alone() -> None:
    data = drawn("grey", n=MOST_IMAGES + 50)
    before = torch.random.get_rng_state()
    assert sample_of(data, 0).row_ids == sample_of(data, 0).row_ids
    assert sample_of(data, 0).row_ids != sample_of(data, 1).row_ids
    assert len(set(sample_of(data, 0).row_ids)) == MOST_IMAGES
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_network_keeps_its_mode_and_its_gradient_flags() -> None:
    data = drawn("grey")
    model = classifier(Brightness(0, 1), data).train()
    look(model, data)
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_network_that_draws_at_random_moves_no_stream() -> None:
    data = drawn("grey")

    class Noisy(Brightness):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + 0.01 * torch.randn_like(x))

    model = classifier(Noisy(0, 1), data)
    before = torch.random.get_rng_state()
    assert look(model, data)[0].not_tried is None
    assert torch.equal(torch.random.get_rng_state(), before)


def test_batches_are_divided_where_memory_is_bounded() -> None:
    data = drawn("grey")
    model = classifier(Brightness(0, 1), data)
    free = look(model, data)
    model.slices = Slices("it", "1KB")
    assert look(model, data) == free


@pytest.mark.parametrize("answer", [0, 1])
def test_a_network_of_one_answer_is_not_better_where_that_class_is_common(answer: int) -> None:
    rng = np.random.default_rng(3)
    labels = (rng.random(200) < 0.8).astype(int)
    data = audit_set(rng.random((200, 8, 8, 1)).astype(np.float32), labels)
    network = Brightness(0, 1)
    with torch.no_grad():
        network.head.weight.mul_(1e-6)
        network.head.bias.copy_(torch.eye(2)[answer])
    readings = look(classifier(network, data), data)
    # In the other order of classes a model that always answers the rare class is right four times in five.
    assert max(r.accuracy.value or 0 for r in readings) > 0.7
    assert not any(r.better for r in readings)


@pytest.mark.parametrize("seed", range(20))
def test_a_model_that_guesses_is_never_called_better_by_chance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = audit_set(rng.random((60, 8, 8, 1)).astype(np.float32), rng.integers(0, 2, 60))
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with torch.no_grad():
        generator = torch.Generator().manual_seed(seed)
        network[1].weight.copy_(torch.randn(2, 64, generator=generator))
        network[1].bias.zero_()
    assert best_reading(look(classifier(network, data), data)) is None


def test_timm_says_its_size_and_normalisation() -> None:
    assert timm_input("resnet18", 3) == (224, IMAGENET)
    assert timm_input("vit_base_patch16_224", 3) == (224, ((0.5,) * 3, (0.5,) * 3))
    assert timm_input("vit_base_patch16_224", 1) == (224, ((0.5,), (0.5,)))
    assert timm_input("resnet18", 1) == (224, None)
    assert timm_input("small-convnext", 1) == (None, None)
    assert timm_input(None, 3) == (None, None)


def test_timms_size_is_tried_in_full_where_the_datas_was_a_guess() -> None:
    data = drawn("colour")
    settings = {"class_names": data.class_names, "input_shape": (3, 8, 8), "name": "it"}
    guessed = Classifier(Redness(False), origins={"size": "data"}, **settings).eval()
    chosen = Classifier(Redness(False), origins={"size": "configuration"}, **settings).eval()
    of_guess = [n for n, v in candidates(guessed, data.image_shape, "resnet18", None).dear if v.size == (224, 224)]
    of_choice = [n for n, v in candidates(chosen, data.image_shape, "resnet18", None).dear if v.size == (224, 224)]
    assert len(of_guess) > len(of_choice) == 2
