"""PGD against torchattacks, and against the published accuracy of two MNIST classifiers that nobody here trained."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from audit.robustness.attacks.pgd import pgd_attack

shared = Path(__file__).parents[2].parent / "shared"


def mnist(n: int) -> tuple[Tensor, Tensor]:
    file = shared / "data" / "mnist_test.npz"
    if not file.is_file():
        pytest.skip("shared/data/mnist_test.npz is not here")
    with np.load(file) as data:
        images, labels = data["test_images"][:n], data["test_labels"][:n]
    return torch.from_numpy(images)[:, None].float() / 255, torch.from_numpy(labels).long().flatten()


def lenet5(name: str) -> nn.Module:
    folder = shared / "models"
    if not (folder / "lenet5.py").is_file():
        pytest.skip("shared/models is not here")
    spec = importlib.util.spec_from_file_location("lenet5_reference", folder / "lenet5.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.LeNet5()
    network.load_state_dict(load_file(folder / f"mnist_lenet5_{name}.safetensors"))
    return network.eval()


@pytest.mark.parametrize(("name", "eps", "steps"), [("plain", 0.1, 10), ("robust", 0.35, 10)])
def test_finds_at_least_as_many_adversarial_examples_as_torchattacks(name: str, eps: float, steps: int) -> None:
    torchattacks = pytest.importorskip("torchattacks")
    images, labels = mnist(100)
    network = lenet5(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torchattacks.PGD(network, eps=eps, alpha=eps / 4, steps=steps, random_start=True)(images, labels)
    ours = pgd_attack(
        network, images, labels, eps=eps, steps=steps, step_size=eps / 4, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        fooled = [int((network(batch).argmax(dim=1) != labels).sum()) for batch in (ours, theirs)]
    assert fooled[0] >= fooled[1]


@pytest.mark.parametrize(("name", "low", "high"), [("plain", 0.0, 0.0), ("robust", 0.90, 0.97)])
def test_robust_accuracy_of_the_mnist_classifiers(name: str, low: float, high: float) -> None:
    images, labels = mnist(100)
    network = lenet5(name)
    adversarial = pgd_attack(
        network, images, labels, eps=0.3, steps=40, step_size=0.01, generator=torch.Generator().manual_seed(0)
    )
    with torch.no_grad():
        accuracy = float((network(adversarial).argmax(dim=1) == labels).float().mean())
    assert low <= accuracy <= high


def test_calibration_error_agrees_with_torchmetrics() -> None:
    calibration = pytest.importorskip("torchmetrics.functional.classification")
    from audit.robustness.accuracy import expected_calibration_error

    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(500, 4, generator=generator).softmax(dim=1)
    labels = torch.randint(4, (500,), generator=generator)
    reference = calibration.multiclass_calibration_error(probabilities, labels, num_classes=4, n_bins=15, norm="l1")
    assert expected_calibration_error(probabilities, labels) == pytest.approx(float(reference), abs=1e-5)


def test_scores_of_the_classes_agree_with_torchmetrics() -> None:
    reference = pytest.importorskip("torchmetrics.functional.classification")
    from audit.robustness.accuracy import class_scores

    generator = torch.Generator().manual_seed(0)
    answers, labels = (torch.randint(4, (300,), generator=generator) for _ in range(2))
    found = class_scores(answers, labels, ("a", "b", "c", "d"))
    matrix = reference.multiclass_confusion_matrix(answers, labels, num_classes=4)
    assert found["confusion"] == matrix.tolist()
    for key, function in (("precision", reference.multiclass_precision), ("f1", reference.multiclass_f1_score)):
        expected = function(answers, labels, num_classes=4, average=None)
        assert list(found[key].values()) == pytest.approx(expected.tolist(), abs=1e-6)
    macro = reference.multiclass_f1_score(answers, labels, num_classes=4, average="macro")
    assert found["macro_f1"] == pytest.approx(float(macro), abs=1e-6)
