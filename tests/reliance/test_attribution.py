"""Attribution maps against closed forms and captum's own, and what shuffled weights leave of them."""

import pytest
import torch
from timm import create_model
from torch import Tensor, nn

from audit.classifiers.classifier import Classifier
from audit.classifiers.slices import Slices
from audit.config import AttributionConfig
from audit.errors import ConfigError, MetricError
from audit.reliance import attribution
from audit.reliance.attribution import attribute, attribution_maps, check_captum, log_odds, shuffled_weights
from audit.reliance.layers import Grid, grid_of
from audit.runtime.memory import limited

CONFIG = AttributionConfig(steps=8, window=0.25)


def silent(amount: float = 1) -> None:
    """Advance no bar."""


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


class Weighted(nn.Module):
    """Two classes whose log-odds are a weighted sum of the pixels."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, images: Tensor) -> Tensor:
        score = (images * self.weights).sum(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(score), score], dim=1)


class Small(nn.Module):
    """A convolutional network with pooling behind its last feature map."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first = nn.Conv2d(1, 4, 3, 2, 1)
            self.last = nn.Conv2d(4, 6, 3, 2, 1)
            self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(torch.relu(self.last(torch.relu(self.first(images)))).mean((2, 3)))


def test_log_odds_of_a_class_whose_logit_is_fixed() -> None:
    model = Weighted(torch.ones(1, 2, 2))
    images = noise(3, 1, 2, 2)
    found = log_odds(model, images, torch.tensor([0, 1, 0]))
    assert torch.allclose(found, images.sum((1, 2, 3)) * torch.tensor([-1.0, 1.0, -1.0]))


def test_integrated_gradients_of_a_weighted_sum() -> None:
    pytest.importorskip("captum", reason="the extra 'attribution' is not installed")
    weights, images = noise(1, 6, 6) - 0.5, noise(2, 1, 6, 6)
    maps = attribution_maps("integrated-gradients", Weighted(weights), images, torch.tensor([1, 0]), CONFIG, silent)
    expected = (weights * (images - images.mean((2, 3), keepdim=True)))[:, 0].abs()
    assert torch.allclose(maps, expected, atol=1e-5)


def test_occlusion_of_a_weighted_sum() -> None:
    pytest.importorskip("captum", reason="the extra 'attribution' is not installed")
    weights = torch.zeros(1, 8, 8)
    weights[:, :2, :2] = 1  # a quarter of the side is covered at a time, by strides of an eighth
    images = torch.full((1, 1, 8, 8), 0.2)
    images[..., :2, :2] = 1
    maps = attribution_maps("occlusion", Weighted(weights), images, torch.tensor([1]), CONFIG, silent)[0]
    assert int(maps.flatten().argmax()) == 0
    assert (maps[3:] == 0).all()
    assert (maps[:, 3:] == 0).all()
    against = attribution_maps("occlusion", Weighted(weights), images, torch.tensor([0]), CONFIG, silent)
    assert float(against.max()) == 0  # what speaks against the class has no part in its map


def test_grad_cam_of_a_convolution_is_captums() -> None:
    captum = pytest.importorskip("captum.attr", reason="the extra 'attribution' is not installed")
    model, images, classes = Small().eval(), noise(3, 1, 16, 16), torch.tensor([0, 1, 2])

    def forward(images: Tensor) -> Tensor:
        return log_odds(model, images, classes)

    known = captum.LayerGradCam(forward, model.last).attribute(images, relu_attributions=True)
    expected = captum.LayerAttribution.interpolate(known, (16, 16), "bilinear")[:, 0]
    maps = attribution_maps("grad-cam", model, images, classes, CONFIG, silent)
    assert torch.allclose(maps, expected, atol=1e-6)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_grad_cam_of_a_transformer_lies_on_the_grid_of_its_patches(pool: str) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=24, num_heads=2, num_classes=3,
            global_pool=pool,
        )  # fmt: skip
    images, classes = noise(2, 3, 32, 32), torch.tensor([0, 1])
    maps = attribution_maps("grad-cam", model.eval(), images, classes, CONFIG, silent)
    assert maps.shape == (2, 32, 32)
    assert float(maps.max()) > 0


def test_grad_cam_of_a_model_that_takes_few_images_at_once_is_the_same() -> None:
    names = ("a", "b", "c")
    free, tight = (Classifier(Small(), name="small", class_names=names, input_shape=(1, 16, 16)) for _ in range(2))
    images, classes = noise(9, 1, 16, 16), torch.zeros(9, dtype=torch.int64)
    tight.slices = Slices("small", "4KB")
    with limited("4KB"):
        found = attribution_maps("grad-cam", tight, images, classes, CONFIG, silent)
    expected = attribution_maps("grad-cam", free, images, classes, CONFIG, silent)
    assert torch.allclose(found, expected, atol=1e-6)
    assert expected.any()
    assert tight.slices is not None


def test_grad_cam_without_places_is_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(MetricError, match="has places"):
        attribution_maps("grad-cam", model, noise(2, 1, 4, 4), torch.tensor([0, 1]), CONFIG, silent)


@pytest.mark.parametrize(
    ("shape", "size", "expected"),
    [
        ((2, 64, 7, 7), (224, 224), Grid("channels first", 7, 7)),
        ((2, 7, 7, 768), (224, 224), Grid("channels last", 7, 7)),
        ((2, 197, 192), (224, 224), Grid("tokens", 14, 14, 1)),
        ((2, 198, 192), (224, 224), Grid("tokens", 14, 14, 2)),
        ((2, 32, 192), (64, 128), Grid("tokens", 4, 8)),
        ((2, 64, 3, 5), (100, 160), Grid("channels first", 3, 5)),
        ((2, 512, 1, 1), (224, 224), None),
        ((2, 512), (224, 224), None),
    ],
)
def test_how_outputs_lie_on_a_grid(shape: tuple[int, ...], size: tuple[int, int], expected: Grid | None) -> None:
    found = grid_of(torch.Size(shape), size)
    assert found == expected
    if found is not None:
        assert found.of(torch.zeros(shape)).shape[2:] == (found.height, found.width)


def test_shuffled_weights_come_back() -> None:
    model = Small()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with shuffled_weights(model, seed=0):
        shuffled = [parameter.detach().clone() for parameter in model.parameters()]
    assert not torch.equal(shuffled[0], before[0])
    assert all(
        torch.equal(a.flatten().sort().values, b.flatten().sort().values) for a, b in zip(before, shuffled, strict=True)
    )
    assert all(map(torch.equal, before, model.parameters()))


def test_a_map_of_the_image_alone_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(attribution._METHODS, "grad-cam", lambda classifier, images, classes, config: images[:, 0])
    images = noise(3, 1, 16, 16)
    assert attribute("grad-cam", Small(), images, CONFIG, 0, silent).similarities.tolist() == pytest.approx([1, 1, 1])
    monkeypatch.undo()
    pytest.importorskip("captum", reason="the extra 'attribution' is not installed")
    weights = torch.zeros(1, 16, 16)
    weights[:, 4:8, 4:8] = 1
    found = attribute("occlusion", Weighted(weights), images, CONFIG, 0, silent)
    assert float(found.similarities.abs().max()) < 0.5


def test_captum_is_asked_for_where_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attribution, "find_spec", lambda name: None)
    check_captum(None)
    check_captum(AttributionConfig(methods=("grad-cam",)))
    with pytest.raises(ConfigError, match=r"'occlusion' .* pip install 'spruce-audit\[attribution\]'"):
        check_captum(AttributionConfig(methods=("grad-cam", "occlusion")))
