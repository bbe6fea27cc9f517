"""Whatever a network returns is read as logits, and features are found or said to be missing."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from audit.classifiers.classifier import Classifier, LocalHead
from audit.classifiers.feature_networks import HookedNetwork, ObservedNetwork, OutputNetwork
from audit.classifiers.outputs import AnswerSettings
from audit.config import CounterfactualConfig, RobustnessConfig
from audit.counterfactual.exceptional import expected_features, fit_calibration
from audit.data.audit_set import AuditSet
from audit.errors import ClassifierError
from audit.robustness.accuracy import clean_metrics
from audit.robustness.evaluate import robust_accuracy

TWO = ("normal", "pneumonia")
THREE = ("a", "b", "c")


class Net(nn.Module):
    """A small network whose answer `own(features, logits)` makes."""

    def __init__(self, own: Callable[[Tensor, Tensor], object] | None = None, outputs: int = 3, side: int = 8) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(1, 4, 3, stride=2)
            self.norm = nn.BatchNorm2d(4)
            self.fc = nn.Linear(4 * ((side - 1) // 2) ** 2, outputs)
        self.own = own

    def forward(self, images: Tensor) -> object:
        x = torch.relu(self.norm(self.conv(images))).flatten(1)
        logits = self.fc(x)
        return logits if self.own is None else self.own(x, logits)


def images(n: int = 5, side: int = 8) -> Tensor:
    return torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1))


def read(network: nn.Module, classes: tuple[str, ...] = THREE, order: Any = None, **answer: Any) -> Classifier:
    return Classifier(
        network.eval(), name="it", class_names=classes, input_shape=(1, 8, 8), order=order,
        answer=AnswerSettings(**answer),
    )  # fmt: skip


@dataclass
class Out:
    loss: Tensor | None
    logits: Tensor
    hidden: tuple[Tensor, ...] = ()


class Named(NamedTuple):
    scores: Tensor
    features: Tensor


@pytest.mark.parametrize(
    ("own", "answer"),
    [
        (lambda x, y: (y, x), "'0' of"),
        (lambda x, y: [x, y], "'1' of"),
        (lambda x, y: {"logits": y}, "'logits' of"),
        (lambda x, y: {"logits": y, "auxiliary": -y}, "'logits' of"),
        (lambda x, y: OrderedDict(loss=y.sum(), out=y), "'out' of"),
        (lambda x, y: Out(y.sum(), y, (x,)), "'logits' of"),
        (lambda x, y: Named(y, x), "'scores' of"),
        (lambda x, y: {"heads": {"disease": y, "site": y[:, :2]}}, "'heads.disease' of"),
        (lambda x, y: (y, y), "'0' of"),
        (lambda x, y: y[:, :, None, None], "logits"),
    ],
)
def test_the_only_logits_are_found_wherever_they_are(own: Callable[..., object], answer: str) -> None:
    it = read(Net(own))
    expected = Net().eval()(images())
    assert torch.equal(it(images()), expected)
    assert it.input.answer.startswith(answer)
    assert isinstance(it.network, ObservedNetwork)
    assert it.input.features == "input of the final linear layer 'fc'"
    features, logits = it.features_and_logits(images())
    torch.testing.assert_close(it.head(features), logits)


@pytest.mark.parametrize(
    ("answer", "sign"),
    [({"output": "b"}, -1), ({"output": 1}, -1), ({"output": -2}, 1), ({"head": "a"}, 1)],
)
def test_one_of_several_is_named(answer: dict[str, Any], sign: int) -> None:
    def own(_: Tensor, y: Tensor) -> object:
        return {"a": y, "b": -y}

    assert torch.equal(read(Net(own), **answer)(images()), sign * Net().eval()(images()))
    nested = Net(lambda x, y: ({"a": y, "b": -y}, x))
    assert torch.equal(read(nested, output=0, head="b")(images()), -Net().eval()(images()))
    with pytest.raises(ClassifierError, match=r"several tensors that may be its logits, 'a', 'b': .* output = \"a\""):
        read(Net(own))
    with pytest.raises(ClassifierError, match="nothing under 'c' in what it returns, which holds 'a', 'b'"):
        read(Net(own), output="c")


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        (lambda x, y: y[:, :, None, None].expand(-1, -1, 8, 8), "as a segmentation or a map of features is"),
        (lambda x, y: y.argmax(dim=1), "returns torch.int64 where logits are needed"),
        (lambda x, y: {"loss": y.sum()}, r"returns no tensor \[4, number of classes\] .* but 'loss' \[\]"),
        (lambda x, y: (y[:, :2], y[:, :2] + 1), "several tensors"),
        (lambda x, y: None, "returns a NoneType without tensors"),
        (lambda x, y: y[:, :1], "has 1 outputs for 3 classes"),
    ],
)
def test_what_is_no_answer_is_named(own: Callable[..., object], sentence: str) -> None:
    with pytest.raises(ClassifierError, match=sentence):
        read(Net(own))


def test_settings_that_do_not_fit_are_named() -> None:
    with pytest.raises(ClassifierError, match="has 3 classes, and a threshold is for two"):
        read(Net(), threshold=0.2)
    with pytest.raises(ClassifierError, match=r"outside \[0, 1\], which are no probabilities"):
        read(Net(lambda x, y: 2 * y), scale="probabilities")
    with pytest.raises(ClassifierError, match="no module 'cnov': did you mean 'conv'"):
        read(Net(), features="cnov")
    with pytest.raises(ClassifierError, match=r"TorchScript or torch\.export, whose modules cannot be looked into"):
        read(torch.jit.trace(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), images()), features="1")


@pytest.mark.parametrize("own", [None, lambda x, y: y[:, 0], lambda x, y: y.squeeze()])
@pytest.mark.parametrize("threshold", [None, 0.1, 0.9])
def test_one_logit_decides_between_two_classes(own: Callable[..., object] | None, threshold: float | None) -> None:
    it = read(Net(own, outputs=1), TWO, threshold=threshold)
    z = Net(outputs=1).eval()(images())[:, 0]
    logits = it(images())
    assert logits.shape == (5, 2)
    p = 0.5 if threshold is None else threshold
    assert torch.equal(logits.argmax(1) == 1, z.sigmoid() > p)
    features, again = it.features_and_logits(images())
    assert torch.equal(again, logits)
    torch.testing.assert_close(it.head(features), logits)
    # One image alone, which `squeeze` leaves without a batch dimension.
    torch.testing.assert_close(it(images()[:1]), logits[:1])
    turned = read(Net(own, outputs=1), TWO, order=(1, 0), threshold=threshold)
    assert torch.equal(turned(images()), logits.flip(1))
    torch.testing.assert_close(turned.head(features), logits.flip(1))


class Twin(nn.Module):
    """The two logits [0, z] of a network that gives one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        z = self.network(images)
        return torch.cat([torch.zeros_like(z), z], dim=1)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000), gain=st.floats(0.5, 20))
def test_a_single_logit_has_the_numbers_of_its_twin_with_two(seed: int, gain: float) -> None:
    network = Net(outputs=1, side=16)
    with torch.no_grad():
        network.fc.weight.copy_(
            gain * torch.randn(network.fc.weight.shape, generator=torch.Generator().manual_seed(seed))
        )
    pixels = images(8, side=16).mul(255).byte()[:, 0].numpy()
    data = AuditSet(
        read_image=lambda row: pixels[row],
        labels=np.arange(8) % 2,
        class_names=TWO,
        ids=tuple(map(str, range(8))),
        splits=np.array(["test"] * 8),
        image_shape=(1, 16, 16),
        regions={},
        source="images",
    )
    config = RobustnessConfig(n=6, eps=("8/255",), steps=3, batch_size=4)
    found = []
    for one in (network, Twin(network)):
        it = Classifier(one.eval(), name="it", class_names=data.class_names, input_shape=(1, 16, 16))
        attacked = robust_accuracy(it, data, config, seed=0)
        found.append((clean_metrics(it, data), attacked.robust, {k: v.tolist() for k, v in attacked.standing.items()}))
    assert found[0] == found[1]


@pytest.mark.parametrize("follows", ["softmax", "log_softmax", "sigmoid"])
def test_logits_are_read_in_front_of_what_saturates(follows: str) -> None:
    def own(_: Tensor, y: Tensor) -> Tensor:
        return y.sigmoid() if follows == "sigmoid" else getattr(y, follows)(dim=1)

    single = follows == "sigmoid"
    it = read(Net(own, outputs=1 if single else 3), TWO if single else THREE)
    plain = read(Net(outputs=1 if single else 3), TWO if single else THREE)
    assert it.answer.scale == "logits"
    assert "in front of its" in it.input.answer
    torch.testing.assert_close(it(images()), plain(images()))
    torch.testing.assert_close(it.features(images()), plain.features(images()))
    network = Net(own, outputs=1 if single else 3)
    as_it_is = read(network, TWO if single else THREE, scale="logits")
    assert isinstance(as_it_is.network, OutputNetwork)
    assert torch.equal(as_it_is(images())[:, -1], network(images())[:, -1])


@pytest.mark.parametrize("single", [True, False])
def test_probabilities_without_a_layer_become_logarithms(single: bool) -> None:
    def own(_: Tensor, y: Tensor) -> Tensor:
        # Twice the logits: no layer gives them.
        return (2 * y).sigmoid() if single else (2 * y).softmax(dim=1)

    it = read(Net(own, outputs=1 if single else 3), TWO if single else THREE)
    logits = 2 * Net(outputs=1 if single else 3).eval()(images())
    expected = functional.pad(logits, (1, 0)).log_softmax(1) if single else logits.log_softmax(1)
    assert it.answer.scale == "probabilities"
    torch.testing.assert_close(it(images()).log_softmax(1), expected)
    leaf = images().requires_grad_()
    (gradient,) = torch.autograd.grad(it(leaf)[:, -1].sum(), leaf)
    assert bool(gradient.flatten(1).any(1).all())


def test_saturated_probabilities_stay_finite() -> None:
    it = read(Net(lambda x, y: (1e4 * y).sigmoid(), outputs=1), TWO)
    logits = it(images())
    assert it.answer.scale == "probabilities"
    assert bool(logits.isfinite().all())
    assert torch.equal(logits.argmax(1) == 1, Net(outputs=1).eval()(images())[:, 0] > 0)


def test_a_small_logit_is_not_taken_for_a_probability() -> None:
    network = Net(outputs=1)
    with torch.no_grad():
        network.fc.weight.mul_(1e-3)
        network.fc.bias.fill_(0.5)
    assert read(network, TWO).answer.scale == "logits"
    assert read(Net(lambda x, y: 0.5 + y / 10, outputs=1), TWO).answer.scale == "logits"
    assert read(Net(lambda x, y: (2 * y).sigmoid(), outputs=1), TWO, scale="logits").answer.scale == "logits"


@pytest.mark.parametrize(
    "own",
    [
        lambda x, y: y / 1.5,
        lambda x, y: functional.normalize(x, dim=1) @ torch.eye(x.shape[1], 3),
        lambda x, y: torch.relu(y),
        lambda x, y: (y + y.roll(1, dims=1)) / 2,
    ],
)
def test_without_a_linear_layer_the_features_are_the_logits(own: Callable[..., Tensor]) -> None:
    network = Net(own)
    it = read(network, order=(2, 0, 1))
    features, logits = it.features_and_logits(images())
    assert isinstance(it.network, OutputNetwork)
    assert it.input.features == "logits"
    assert torch.equal(logits, network.eval()(images())[:, [2, 0, 1]])
    assert torch.equal(features, network(images()))
    assert torch.equal(it.head(features), logits)


def test_features_of_a_module_and_their_first_order_head() -> None:
    network = Net(lambda x, y: torch.tanh(y))
    it = read(network, features="norm", order=(1, 2, 0))
    features, logits = it.features_and_logits(images())
    assert isinstance(it.network, HookedNetwork)
    assert features.shape == (5, 4)
    torch.testing.assert_close(features, network.norm(network.conv(images())).mean((2, 3)))
    head = it.head_at(images())
    assert isinstance(head, LocalHead)
    torch.testing.assert_close(head(features), logits)
    # The bias of the batch norm shifts a channel everywhere: its effect on the logits is the head's weight.
    step = 1e-3
    for channel in range(4):
        with torch.no_grad():
            network.norm.bias[channel] += step
            moved = it(images())
            network.norm.bias[channel] -= step
        torch.testing.assert_close((moved - logits) / step, head.weight[:, :, channel], atol=2e-3, rtol=2e-2)
    calibration = fit_calibration(
        torch.randn(300, 4, generator=torch.Generator().manual_seed(0)),
        torch.arange(300) % 3,
        CounterfactualConfig(min_calibration=10),
        THREE,
        0,
    )
    source, target = torch.zeros(5, dtype=torch.long), torch.ones(5, dtype=torch.long)
    expected, replaced = expected_features(calibration, head, 10 * features, source, target)
    assert expected.shape == replaced.shape == features.shape


def test_a_module_that_is_the_input_of_the_final_layer_keeps_its_head() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3))
    it = read(network, features="2")
    assert isinstance(it.network, ObservedNetwork)
    assert it.head is network[3]


@pytest.mark.slow
@pytest.mark.parametrize(
    "architecture",
    [
        "levit_128s", "efficientformer_l1", "repvit_m0_9", "swiftformer_xs", "crossvit_tiny_240", "volo_d1_224",
        "deit_tiny_distilled_patch16_224", "pit_ti_distilled_224",
    ],
)  # fmt: skip
def test_timm_networks_that_do_not_end_in_one_linear_layer(architecture: str) -> None:
    side = 240 if "240" in architecture else 224
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(architecture, num_classes=3).eval()
    given = torch.rand(2, 3, side, side)
    it = Classifier(network, name="it", class_names=THREE, input_shape=(3, side, side))
    assert torch.equal(it(given), network(given))
    features, logits = it.features_and_logits(given)
    torch.testing.assert_close(it.head(features), logits, atol=1e-4, rtol=1e-3)


def test_torchvisions_squeezenet_is_read() -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = models.squeezenet1_1(num_classes=3).eval()
    it = Classifier(network, name="it", class_names=THREE, input_shape=(3, 64, 64))
    assert torch.equal(it(torch.ones(2, 3, 64, 64)), network(torch.ones(2, 3, 64, 64)))
