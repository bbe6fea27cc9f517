"""What calibration learns of a classifier, and what its cached results are found by."""

import torch
from torch import Tensor, nn

from audit.classifiers.classifier import Classifier
from audit.pipeline.calibrate import _has_gradient


class Cut(nn.Module):
    """A network whose first layer gives no gradient back where `cut` is set; its outputs are the same."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.cut, self.linear = cut, nn.Linear(16, 2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.linspace(-1, 1, 32).reshape(2, 16))

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        return self.linear(x.detach() if self.cut else x)


def test_a_network_that_cuts_the_way_back_is_another_one() -> None:
    images = torch.rand(3, 1, 4, 4)
    for cut in (False, True):
        classifier = Classifier(Cut(cut), name="cut", class_names=("a", "b"), input_shape=(1, 4, 4))
        assert _has_gradient(classifier, images) is not cut
