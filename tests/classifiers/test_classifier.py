"""The classifier's own part: bridges of channels and size, normalisation, class order, and what it refuses."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.classifiers.bridge import bridge_channels, bridge_size
from audit.classifiers.classifier import Classifier, weights_hash
from audit.data.colour import LUMA
from audit.errors import ClassifierError


def network(channels: int = 1, num_classes: int = 3) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(channels, 5, 3), nn.GELU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, num_classes)
        ).eval()


def classifier(channels: int = 1, **settings: object) -> Classifier:
    arguments = {"name": "it", "class_names": ("a", "b", "c"), "input_shape": (channels, 16, 16), **settings}
    return Classifier(network(channels), **arguments)  # type: ignore[arg-type]


def images(n: int = 2, channels: int = 1, height: int = 16, width: int = 16) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1))


def test_normalisation_is_inside() -> None:
    it = classifier(3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    given = images(channels=3)
    assert torch.allclose(it(given), network(3)((given - mean[:, None, None]) / std[:, None, None]), atol=1e-6)
    assert torch.equal(classifier(3, mean=(0.4,), std=(0.5,)).mean.flatten(), torch.tensor([0.4, 0.4, 0.4]))


def test_one_pass_agrees_with_each_part() -> None:
    it = classifier(mean=(0.4,), std=(0.2,))
    x, logits = it.features_and_logits(images())
    assert it.head.in_features == x.shape[1] == 5
    assert torch.equal(it.features(images()), x)
    assert torch.allclose(it(images()), logits)
    assert torch.allclose(it.head(x), logits, atol=1e-6)


def test_grey_is_repeated_and_colour_becomes_luma() -> None:
    grey = images()
    assert torch.equal(bridge_channels(grey, 3), grey.repeat(1, 3, 1, 1))
    assert torch.allclose(bridge_channels(bridge_channels(grey, 3), 1), grey, atol=1e-6)
    pure = torch.eye(3)[:, :, None, None]
    assert torch.allclose(bridge_channels(pure, 1).flatten(), torch.tensor(LUMA))


@given(
    height=st.integers(8, 40),
    width=st.integers(8, 40),
    channels=st.sampled_from([1, 3]),
    wanted=st.sampled_from([1, 3]),
    constant=st.floats(0, 1),
)
@settings(max_examples=25, deadline=None)
def test_bridges_keep_constants_and_the_pixel_range(
    height: int, width: int, channels: int, wanted: int, constant: float
) -> None:
    flat = torch.full((1, channels, height, width), constant)
    bridged = bridge_size(bridge_channels(flat, wanted), (16, 16))
    assert bridged.shape == (1, wanted, 16, 16)
    assert torch.allclose(bridged, torch.full_like(bridged, constant), atol=1e-5)
    out = bridge_size(bridge_channels(images(1, channels, height, width), wanted), (16, 16))
    assert float(out.min()) >= -1e-6
    assert float(out.max()) <= 1 + 1e-6


@pytest.mark.parametrize(("given_channels", "wanted"), [(1, 1), (1, 3), (3, 1), (3, 3)])
@pytest.mark.parametrize("side", [16, 33, 11])
def test_gradients_through_the_bridges_agree_with_differences(given_channels: int, wanted: int, side: int) -> None:
    it = classifier(wanted, mean=(0.4,), std=(0.2,)).double()
    given = images(1, given_channels, side, side).double().requires_grad_()
    (gradient,) = torch.autograd.grad(it(given)[0, 0], given)
    assert bool((gradient != 0).any())
    direction = torch.randn(given.shape, generator=torch.Generator().manual_seed(2)).double()
    step = 1e-5
    with torch.no_grad():
        slope = (it(given + step * direction) - it(given - step * direction))[0, 0] / (2 * step)
    assert torch.allclose((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-9)


def test_class_order_is_the_datas() -> None:
    plain, ordered = classifier(), classifier(order=(2, 0, 1))
    assert torch.equal(ordered(images()), plain(images())[:, [2, 0, 1]])
    x, logits = ordered.features_and_logits(images())
    assert torch.allclose(ordered.head(x), logits, atol=1e-6)
    assert torch.equal(ordered.head.weight, plain.head.weight[[2, 0, 1]])
    assert ordered.weights_sha256 == plain.weights_sha256


def test_the_head_is_the_networks_own_and_survives_copies() -> None:
    it = classifier()
    assert it.head is it.network.network[4]
    twin = copy.deepcopy(it)
    assert twin.head is twin.network.network[4]
    assert twin.head is not it.head
    assert len(list(it.state_dict())) == len(network().state_dict())


def test_hash_tells_weights_apart_and_ignores_order() -> None:
    state = network().state_dict()
    assert weights_hash(state) == weights_hash(dict(reversed(state.items())))
    assert weights_hash(state) != weights_hash({**state, "4.bias": state["4.bias"] + 1e-6})
    assert weights_hash({"a": torch.zeros(2)}) != weights_hash({"b": torch.zeros(2)})
    assert len(weights_hash({"a": torch.zeros(2, dtype=torch.bfloat16), "n": torch.tensor(3)})) == 64


def test_the_global_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    classifier(order=(2, 0, 1))(images())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"class_names": ("a", "b")}, "3 outputs for 2 classes"),
        ({"mean": (0.1, 0.2)}, r"2 values of mean for 1 channel"),
        ({"std": (0.0,)}, "above 0 for std"),
        ({"mean": (float("nan"),)}, "finite numbers"),
        ({"input_shape": (3, 16, 16)}, "set its input_size and channels"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, object], sentence: str) -> None:
    with pytest.raises(ClassifierError, match=sentence):
        classifier(**settings)


@pytest.mark.parametrize("shape", [(16, 16), (1, 16, 16), (2, 2, 16, 16)])
def test_wrong_images_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ClassifierError, match=r"give \[N, 1 or 3, H, W\]"):
        classifier()(torch.rand(shape))
