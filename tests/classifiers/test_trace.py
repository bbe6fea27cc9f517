"""Features and head are found by running real networks: timm families, TorchScript and torch.export files."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from audit.classifiers.feature_networks import ObservedNetwork, OutputNetwork, WidenedNetwork
from audit.classifiers.trace import same, trace_network
from audit.errors import ClassifierError


def probe(channels: int = 1, side: int = 8, n: int = 4) -> Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    """Convolution, pooling, and a head given as a module; `after` acts on the logits."""

    def __init__(self, head: nn.Module, after: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.classify = head
        self.after = nn.Identity() if after is None else after

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(images))).mean(dim=(2, 3))
        return self.after(self.classify(x))


@pytest.mark.parametrize(
    ("architecture", "side", "args", "head"),
    [
        ("convnext_atto", 32, {}, "head.fc"),
        ("resnet18", 32, {}, "fc"),
        ("vit_tiny_patch16_224", 32, {"img_size": 32}, "head"),
        ("mobilenetv3_small_050", 32, {}, "classifier"),
        ("densenet121", 32, {}, "classifier"),
    ],
)
def test_timm_families(architecture: str, side: int, args: dict[str, int], head: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model(architecture, num_classes=5, **args)
    network.train()
    traced = trace_network(network, probe(3, side), architecture).network
    assert isinstance(traced, ObservedNetwork)
    assert traced.head is network.get_submodule(head)
    assert network.training
    assert all(p.requires_grad for p in network.parameters())
    assert not any(m._forward_hooks for m in network.modules())
    traced.eval()
    x, logits = traced.features_and_logits(probe(3, side))
    assert x.shape == (4, traced.head.in_features)
    assert torch.allclose(network.forward_head(network.forward_features(probe(3, side)), pre_logits=True), x, atol=1e-5)
    assert same(traced.head(x), logits)


def saved(network: nn.Module, how: str, folder: Path, example: Tensor) -> nn.Module:
    """Write `network` in the format `how` and read it back."""
    file = str(folder / f"network-{how}.pt2")
    if how == "export":
        shapes = ({0: torch.export.Dim("batch", min=1, max=1024)},)
        torch.export.save(torch.export.export(network, (example,), dynamic_shapes=shapes), file)
        return torch.export.load(file).module()
    script = torch.jit.script(network) if how == "script" else torch.jit.trace(network, example)
    torch.jit.save(script, file)
    return torch.jit.load(file)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["script", "trace", "export"])
@pytest.mark.parametrize("kind", ["linear", "no-bias", "deep", "convolution", "square"])
def test_files_give_the_same_features_logits_and_gradients(how: str, kind: str, tmp_path: Path) -> None:
    heads: dict[str, nn.Module] = {
        "linear": nn.Linear(6, 3),
        "no-bias": nn.Linear(6, 3, bias=False),
        # A hidden layer as wide as the logits must not be taken for the final one.
        "deep": nn.Sequential(nn.Linear(6, 3), nn.GELU(), nn.Linear(3, 3)),
        "convolution": nn.Sequential(nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 3, 1), nn.Flatten()),
        "square": nn.Linear(6, 6),
    }
    network = Small(heads[kind]).eval()
    images = probe(n=4)
    observed = trace_network(network, images, "eager").network
    file = saved(network, how, tmp_path, images)
    traced = trace_network(file, images, how).network
    assert isinstance(traced, WidenedNetwork)
    traced.train()
    traced.eval()
    assert torch.equal(traced.head.weight, observed.head.weight)
    # Several calls and batch sizes: TorchScript swaps in optimised code, with its own gradients, after the first ones.
    for n in (4, 4, 4, 2, 1):
        one, two = (images[:n].clone().requires_grad_() for _ in range(2))
        x, logits = observed.features_and_logits(one)
        x_file, logits_file = traced.features_and_logits(two)
        assert torch.allclose(x_file, x, atol=1e-6)
        assert torch.allclose(logits_file, logits, atol=1e-6)
        assert torch.allclose(traced(images[:n]), logits, atol=1e-6)
        (gradient,) = torch.autograd.grad(x.pow(2).sum() + logits.logsumexp(1).sum(), one)
        (gradient_file,) = torch.autograd.grad(x_file.pow(2).sum() + logits_file.logsumexp(1).sum(), two)
        assert gradient.abs().sum() > 0
        assert torch.allclose(gradient_file, gradient, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_a_timm_network_survives_the_way_through_a_file(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = timm.create_model("convnext_atto", num_classes=3, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16)).eval()
    images = probe(3, 32)
    x, logits = trace_network(network, images, "eager").network.features_and_logits(images)
    for how in ("trace", "export"):
        x_file, logits_file = trace_network(
            saved(network, how, tmp_path, images), images, how
        ).network.features_and_logits(images)
        assert torch.allclose(x_file, x, atol=1e-5)
        assert torch.allclose(logits_file, logits, atol=1e-5)


def test_convolution_as_head() -> None:
    head = nn.Sequential(nn.Unflatten(1, (6, 1, 1)), nn.Conv2d(6, 3, 1), nn.Flatten())
    traced = trace_network(Small(head).eval(), probe(), "convolution").network
    x, logits = traced.features_and_logits(probe())
    assert x.shape == (4, 6)
    assert torch.allclose(traced.head(x), logits, atol=1e-6)


class Heads(Small):
    """Two heads on different features, and `joined`, which makes one answer of theirs."""

    def __init__(self, joined: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(nn.Linear(6, 3))
        self.other = nn.Linear(6, 3, bias=False)
        self.joined = joined

    def forward(self, images: Tensor) -> Tensor:
        maps = torch.relu(self.norm(self.conv(images)))
        return self.joined(self.classify(maps.mean(dim=(2, 3))), self.other(maps.amax(dim=(2, 3))))


def seeded(joined: Callable[[Tensor, Tensor], Tensor]) -> Heads:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Heads(joined).eval()


@pytest.mark.parametrize(
    ("joined", "shares"),
    [
        (lambda one, two: (one + two) / 2, (0.5, 0.5)),
        (lambda one, two: torch.stack([one, two]).sum(0), (1.0, 1.0)),
        (lambda one, two: one - 0.3 * two, (1.0, -0.3)),
    ],
)
def test_a_weighted_sum_of_heads_is_one_layer_of_their_inputs(
    joined: Callable[[Tensor, Tensor], Tensor], shares: tuple[float, float]
) -> None:
    network = seeded(joined)
    traced = trace_network(network, probe(), "two heads").network
    assert isinstance(traced, ObservedNetwork)
    assert "'classify' and 'other'" in traced.features_of
    assert traced.head.weight.shape == (3, 12)
    weights = shares[0] * network.classify.weight, shares[1] * network.other.weight
    assert torch.allclose(traced.head.weight, torch.cat(weights, dim=1), atol=1e-6)
    images = probe(n=3).requires_grad_()
    x, logits = traced.features_and_logits(images)
    assert torch.equal(logits, network(images))
    assert torch.allclose(traced.head(x), logits, atol=1e-6)
    (by_features,) = torch.autograd.grad(traced.head(x)[:, 0].sum(), images, retain_graph=True)
    (gradient,) = torch.autograd.grad(logits[:, 0].sum(), images)
    assert torch.allclose(by_features, gradient, atol=1e-6)


@pytest.mark.parametrize(
    "joined",
    [torch.maximum, torch.mul, lambda one, two: one.softmax(1) + two.softmax(1), lambda one, two: one + two.relu()],
)
def test_heads_joined_otherwise_have_no_features(joined: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert isinstance(trace_network(seeded(joined), probe(), "two heads").network, OutputNetwork)


@pytest.mark.parametrize(
    ("architecture", "side", "args"),
    [("deit_tiny_distilled_patch16_224", 32, {"img_size": 32}), ("repvit_m0_9", 32, {})],
)
def test_distilled_networks_have_the_features_of_both_heads(architecture: str, side: int, args: dict[str, int]) -> None:
    network = timm.create_model(architecture, num_classes=5, **args).eval()
    traced = trace_network(network, probe(3, side), architecture).network
    assert isinstance(traced, ObservedNetwork)
    x, logits = traced.features_and_logits(probe(3, side))
    assert x.shape[1] == traced.head.in_features == 2 * network.num_features
    assert same(traced.head(x), logits)


class Returns(nn.Module):
    """Any function of the images as a network."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 3)
        self.function = function

    def forward(self, images: Tensor) -> object:
        return self.function(self, images)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        (Small(nn.Conv1d(6, 3, 1)), "fails on a batch of shape"),
        (Returns(lambda m, images: images), "as a segmentation or a map of features is"),
        (Returns(lambda m, images: m.layer(images.flatten(1)).sum()), "returns shape"),
        (Returns(lambda m, images: m.layer(images.flatten(1)) / 0.0), "NaN or infinite logits"),
        (Returns(lambda m, images: m.layer(images.reshape(4, -1))), "4 but not of 3 .* keep the batch dimension"),
        (Returns(lambda m, images: {}), "returns a dict without tensors"),
        (
            Returns(lambda m, images: (images, images)),
            r"no tensor \[4, number of classes\] for 4 images but '0' \[4, 1, 8, 8\]",
        ),
    ],
)
def test_what_is_no_classifier_is_named(network: nn.Module, sentence: str) -> None:
    with pytest.raises(ClassifierError, match=sentence):
        trace_network(network.eval(), probe(), "it")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("after", [nn.Softmax(1), nn.Tanh()])
def test_files_with_something_after_the_head_have_no_features_and_are_left_alone(after: nn.Module) -> None:
    script = torch.jit.script(Small(nn.Linear(6, 3), after).eval())
    before = {key: value.clone() for key, value in script.state_dict().items()}
    traced = trace_network(script, probe(), "it")
    assert isinstance(traced.network, OutputNetwork)
    assert traced.scale == ("probabilities" if isinstance(after, nn.Softmax) else "logits")
    assert all(torch.equal(value, before[key]) for key, value in script.state_dict().items())


@pytest.mark.filterwarnings("ignore")
def test_a_frozen_file_has_no_features_and_a_static_one_is_named() -> None:
    network = Small(nn.Linear(6, 3)).eval()
    frozen = trace_network(torch.jit.freeze(torch.jit.script(network)), probe(), "it").network
    assert isinstance(frozen, OutputNetwork)
    assert torch.allclose(frozen(probe()), network(probe()))
    for n in (1, 4):
        with pytest.raises(ClassifierError, match="dynamic batch dimension"):
            trace_network(torch.export.export(network, (probe(n=n),)).module(), probe(), "it")
