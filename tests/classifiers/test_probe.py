"""Networks as people write them: each fault is named by its cause, and what can be audited is."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from audit.classifiers.classifier import Classifier
from audit.classifiers.probe import Behaviour
from audit.errors import ClassifierError

CLASSES = ("a", "b", "c")
SHAPE = (1, 12, 12)


class Tutorial(nn.Module):
    """The network of many a tutorial; `forward` may be replaced by a function of the network and the images."""

    def __init__(self, forward: Callable[["Tutorial", Tensor], object] | None = None, norm: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
            self.fc = nn.Linear(4 * 36, 3)
        self.own = forward

    def features(self, x: Tensor) -> Tensor:
        return torch.max_pool2d(torch.relu(self.norm(self.conv(x))), 2).flatten(1)

    def forward(self, x: Tensor) -> object:
        return self.fc(self.features(x)) if self.own is None else self.own(self, x)


def classifier(network: nn.Module, shape: tuple[int, int, int] = SHAPE, **settings: object) -> Classifier:
    return Classifier(network, name="it", class_names=CLASSES, input_shape=shape, **settings).eval()  # type: ignore[arg-type]


def images(n: int = 5, channels: int = 1, side: int = 12) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(1))


def viewed(network: Tutorial, x: Tensor) -> Tensor:
    x = torch.max_pool2d(torch.relu(network.conv(x)), 2)
    return network.fc(x.view(x.size(0), -1))


def test_a_network_that_flattens_by_view_is_audited_with_contiguous_weights() -> None:
    plain, it = classifier(Tutorial()), classifier(Tutorial(viewed))
    assert plain.prefer_channels_last()
    assert not it.prefer_channels_last()
    torch.testing.assert_close(it(images()), plain(images()), atol=1e-5, rtol=1e-5)
    given = images().requires_grad_()
    assert float(torch.autograd.grad(it(given).sum(), given)[0].abs().sum()) > 0


def test_a_view_that_the_probe_did_not_meet_turns_to_contiguous_weights_when_it_does() -> None:
    it = classifier(Tutorial(lambda m, x: viewed(m, x) if len(x) > 4 else m.fc(m.features(x))))
    assert it.prefer_channels_last()
    expected = classifier(Tutorial())(images(5))
    torch.testing.assert_close(it(images(5)), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(it.features_and_logits(images(5))[1], expected, atol=1e-5, rtol=1e-5)


class Flat(nn.Module):
    """Looks at the images themselves by `view`."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.view(len(x), -1))


@pytest.mark.parametrize(
    "given",
    [
        images(2),
        images(2).expand(-1, 3, -1, -1),
        images(2, 3).to(memory_format=torch.channels_last),
        images(2, 3, 30)[:, :, ::2, 3:15],
        images(3, 2).permute(1, 0, 2, 3),
        images(2, 3, 20),
    ],
)
def test_whatever_strides_images_have_a_network_may_view_them(given: Tensor) -> None:
    it = classifier(Flat(3 * 144), (3, 12, 12), mean=(0.4,), std=(0.3,))
    assert it.prepare(given).is_contiguous()
    assert torch.allclose(it(given), it(given.contiguous()), atol=1e-6)


def test_noise_and_dropout_are_audited_and_known_as_random() -> None:
    noisy = Tutorial(lambda m, x: m.fc(m.features(x + 0.2 * torch.randn_like(x))))
    dropping = Tutorial(lambda m, x: m.fc(functional.dropout(m.features(x), 0.5)))
    before = torch.get_rng_state()
    for network in (noisy, dropping):
        it = classifier(network)
        assert it.prefer_channels_last()
        assert it.behaviour() == Behaviour(random=True, batch_dependent=False)
    assert torch.equal(torch.get_rng_state(), before)
    assert classifier(Tutorial()).behaviour() == Behaviour(random=False, batch_dependent=False)


def test_noise_from_elsewhere_than_torch_is_named() -> None:
    import numpy as np

    draws = np.random.default_rng(0)
    network = Tutorial(lambda m, x: m.fc(m.features(x + torch.from_numpy(draws.normal(size=x.shape)).float())))
    with pytest.raises(ClassifierError, match="draws at random in its forward, and not from torch's generator"):
        classifier(network)


def test_statistics_of_the_batch_are_seen_and_left_alone() -> None:
    network = Tutorial(lambda m, x: m.fc(m.features((x - x.mean()) / x.std())))
    assert classifier(network).behaviour() == Behaviour(random=False, batch_dependent=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["trace", "export"])
def test_files_written_in_training_mode_are_read_and_known(how: str, tmp_path: Path) -> None:
    def program(network: nn.Module) -> nn.Module:
        if how == "trace":
            torch.jit.trace(network, images(4), check_trace=False).save(str(tmp_path / "it.pt"))
            return torch.jit.load(str(tmp_path / "it.pt"))
        shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
        exported = torch.export.export(network, (images(4),), dynamic_shapes=shapes)
        return exported.module()

    class Dropping(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(400, 3))

    assert classifier(program(Dropping().train())).behaviour().random
    averaged = program(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(400, 3)).train())
    before = {key: value.clone() for key, value in averaged.named_buffers()}
    it = classifier(averaged)
    assert all(torch.equal(value, before[key]) for key, value in it.network.network.named_buffers())
    assert it.behaviour() == Behaviour(random=False, batch_dependent=True)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_files_of_another_number_type_are_fed_in_it(dtype: torch.dtype) -> None:
    network = Tutorial().eval()
    plain = classifier(network)
    expected = plain(images())
    shapes = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
    program = torch.export.export(network.to(dtype), (images(4).to(dtype),), dynamic_shapes=shapes).module()
    it = classifier(program)
    given = images().requires_grad_()
    features, logits = it.features_and_logits(given)
    assert features.dtype == logits.dtype == it(given).dtype == torch.float32
    assert torch.allclose(logits, expected, atol=0.05)
    assert torch.allclose(it.head(features), logits, atol=0.05)
    assert float(torch.autograd.grad(logits.sum(), given)[0].abs().sum()) > 0


def test_a_python_network_that_casts_for_itself_is_fed_in_its_type() -> None:
    network = Tutorial(lambda m, x: m.fc(m.features(x.bfloat16())))
    network.bfloat16()
    it = classifier(network)
    features, logits = it.features_and_logits(images())
    assert features.dtype == logits.dtype == torch.float32
    assert torch.allclose(it.head(features), logits, atol=0.05)


def asserting(network: Tutorial, x: Tensor) -> object:
    assert len(x) > 1, "batch of one"
    return network.fc(network.features(x))


@pytest.mark.parametrize(
    ("forward", "sentence"),
    [
        (lambda m, x: m.fc(m.features(x).squeeze()), r"cannot take a batch of one image: it returns shape \[3\]"),
        (asserting, "cannot take a batch of one image: batch of one"),
        (lambda m, x: m.fc(m.features(x))[: 2 * (len(x) // 2)], "takes batches of 4 but not of 3 images"),
        (lambda m, x: {}["no such key"], r"fails on a batch .*'no such key'.*, a KeyError that its own code raises"),
        (lambda m, x, y: None, "a TypeError that its own code raises"),
        (lambda m, x: m.fc(m.features(x)).argmax(1, keepdim=True), "returns torch.int64 where logits are needed"),
    ],
)
def test_what_a_forward_does_wrong_is_named(forward: Callable[..., object], sentence: str) -> None:
    with pytest.raises(ClassifierError, match=sentence) as caught:
        classifier(Tutorial(forward))
    assert "\n" not in str(caught.value)
    assert "input_size" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 20, 20), (3, 28, 28)])
def test_a_wrong_size_is_answered_with_one_that_fits(shape: tuple[int, int, int]) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 26 * 26, 3))
    with pytest.raises(ClassifierError, match="takes images of 1 x 28 x 28: set its input_size and channels"):
        classifier(network, shape)


def test_what_a_network_raises_later_is_one_sentence() -> None:
    def late(network: Tutorial, x: Tensor) -> object:
        if len(x) > 4:
            raise AssertionError("no more\nthan four")
        return network.fc(network.features(x))

    with pytest.raises(ClassifierError, match=r"'it' fails on a batch of shape \[5, 1, 12, 12\] \(no more\)") as caught:
        classifier(Tutorial(late))(images(5))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_lack_of_memory_stays_what_it_is(error: Exception) -> None:
    def late(network: Tutorial, x: Tensor) -> object:
        if len(x) > 4:
            raise error
        return network.fc(network.features(x))

    with pytest.raises(type(error), match=r"x|allocate"):
        classifier(Tutorial(late))(images(5))


def test_another_reading_of_the_input_shares_the_network() -> None:
    colour = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    it = classifier(colour, (3, 12, 12), mean=(0.1, 0.2, 0.3), std=(0.5,))
    given = images(channels=3)
    before = it(given)
    other = it.with_input(mean=(0,), std=(1 / 255,), size=(20, 20), reversed_channels=True, classes=("c", "a", "b"))
    assert other.network is it.network
    larger = functional.interpolate(given, (20, 20), mode="bilinear", antialias=True)
    expected = colour(larger.flip(1) * 255)[:, [1, 2, 0]]
    assert torch.allclose(other(given), expected, atol=1e-3)
    x, logits = other.features_and_logits(given)
    assert torch.allclose(other.head(x), logits, atol=1e-3)
    assert torch.equal(it(given), before)
    assert torch.equal(it.with_input()(given), before)
    assert it.with_input(classes=CLASSES[::-1]).with_input(classes=CLASSES)(given).equal(before)
    assert other.input.classes == ["c", "a", "b"]
    assert (other.input.size, it.input.size) == ((20, 20), (12, 12))
    with pytest.raises(ClassifierError, match="2 values of mean"):
        it.with_input(mean=(0.5, 0.5))
    with pytest.raises(ClassifierError, match="do not match those of the data"):
        it.with_input(classes=("a", "b", "d"))
