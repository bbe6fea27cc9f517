"""Networks by name: the small ConvNeXt, its twin by timm arguments, and clear errors."""

import pytest
import torch

from audit.classifiers.architectures import SMALL_CONVNEXT, SMALL_CONVNEXT_ARGS, build_architecture, small_convnext
from audit.errors import ClassifierError


def test_small_convnext_is_small_and_takes_grey_and_colour() -> None:
    for channels in (1, 3):
        network = small_convnext(5, in_chans=channels)
        assert network(torch.rand(2, channels, 64, 64)).shape == (2, 5)
        assert 1e5 < sum(p.numel() for p in network.parameters()) < 6e5


def test_small_convnext_sees_every_pixel() -> None:
    images = torch.rand(1, 1, 64, 64, requires_grad=True)
    small_convnext(3).eval()(images).pow(2).sum().backward()
    assert images.grad is not None
    assert bool((images.grad != 0).all())


def test_timm_arguments_name_the_same_network() -> None:
    ours = small_convnext(3).state_dict()
    theirs = build_architecture(SMALL_CONVNEXT, 3, 1, SMALL_CONVNEXT_ARGS).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    named = build_architecture("small-convnext", 3, 1, {}).state_dict()
    assert list(named) == list(ours)


@pytest.mark.parametrize(
    ("architecture", "args", "sentence"),
    [
        ("resnet81", {}, "did you mean 'resnet18'"),
        ("resnet18", {"depht": 3}, "cannot be built with architecture_args"),
        ("resnet18", {"pretrained": True}, "may not hold 'pretrained'"),
        ("small-convnext", {"depths": (1, 1, 1, 1)}, "takes no architecture_args"),
    ],
)
def test_errors_name_the_remedy(architecture: str, args: dict[str, object], sentence: str) -> None:
    with pytest.raises(ClassifierError, match=sentence):
        build_architecture(architecture, 3, 1, args)
