"""An attack of another package leaves nothing behind, and what it returns is held to the contract."""

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from support_models import Brightness, grey_levels
from torch import Tensor, nn

from audit.config import RobustnessConfig
from audit.robustness.attacks.registry import ATTACKS
from audit.robustness.attacks.spec import AttackSpec
from audit.robustness.evaluate import measured_robustness
from audit.robustness.tally import Attacked

LEVELS, LABELS = [0.45, 0.40, 0.30, 0.55, 0.60, 0.70], [0, 0, 0, 1, 1, 1]


@pytest.fixture(autouse=True)
def _nothing_stays_added() -> Iterator[None]:
    yield
    ATTACKS.added.clear()


def measured(run: Callable[..., object], model: nn.Module | None = None, **spec: object) -> Attacked:
    ATTACKS.added.clear()
    ATTACKS.add("mine", AttackSpec(run, **spec))  # type: ignore[arg-type]
    config = RobustnessConfig(n=6, eps=("0.08",), steps=5, attacks=("pgd", "mine"), batch_size=4, trust=None)
    return measured_robustness(Brightness() if model is None else model, grey_levels(LEVELS, LABELS), config, 0)


def noise(classifier: nn.Module, images: Tensor, labels: Tensor, *, eps: float, **_: object) -> Tensor:
    """Draw from every global generator, as foreign code may."""
    shift = torch.rand(1) + random.random() + float(np.random.rand())  # noqa: NPY002
    sign = torch.where(torch.rand_like(images) < shift / 3, 1.0, -1.0)
    return (images + eps * sign).clamp(0, 1)


def states() -> tuple[list[int], object, list[float]]:
    return torch.get_rng_state().tolist(), random.getstate(), list(np.random.get_state()[1])  # noqa: NPY002


def test_global_generators_are_untouched_and_equal_seeds_give_equal_images() -> None:
    given: list[Tensor] = []

    def run(classifier: nn.Module, images: Tensor, labels: Tensor, *, eps: float, **more: object) -> Tensor:
        given.append(noise(classifier, images, labels, eps=eps))
        return given[-1]

    before = states()
    measured(run)
    assert states() == before
    torch.rand(3)
    random.random()
    measured(run)
    assert len(given) == 4
    assert all(torch.equal(a, b) for a, b in zip(given[:2], given[2:], strict=True))
    assert not torch.equal(given[0][:2] - given[0][:2].mean(), given[1] - given[1].mean())


def test_mode_and_gradient_flags_come_back_whatever_it_does() -> None:
    model = Brightness()
    model.part = nn.BatchNorm2d(1).eval()
    model.train()
    model.part.eval()

    def run(classifier: nn.Module, images: Tensor, *_: Tensor, **__: object) -> Tensor:
        assert not model.training
        classifier.train()
        images.zero_()
        raise RuntimeError("no more")

    found = measured(run, model)
    assert model.training
    assert not model.part.training
    assert model.sharpness.requires_grad
    (missing,) = found.missing
    assert missing.why == "Attack 'mine' failed on classifier 'Brightness' (RuntimeError: no more)."
    assert set(found.standing) == {"robust.pgd.0.08"}
    assert found.robust.pgd["0.08"].robust_accuracy.value == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda images, eps: images + 2 * eps, "from its original where eps is 0.08 in Linf"),
        (lambda images, eps: images + 1, "pixels that are not in [0, 1]"),
        (lambda images, eps: images * torch.nan, "pixels that are not in [0, 1]"),
        (lambda images, eps: images[:, :, :2], "returned [4, 1, 2, 4] where images of shape [4, 1, 4, 4]"),
        (lambda images, eps: (images, None), "returned tuple where images"),
    ],
)
def test_what_it_may_not_return_is_refused(change: Callable[[Tensor, float], object], said: str) -> None:
    found = measured(lambda classifier, images, labels, *, eps, **_: change(images, eps))
    assert said in found.missing[0].why
    assert not found.robust.attacks


def test_rounding_is_mended() -> None:
    def run(classifier: nn.Module, images: Tensor, labels: Tensor, *, eps: float, **_: object) -> Tensor:
        towards = torch.where(labels == 0, 1.0, -1.0).view(-1, 1, 1, 1)
        return (images + towards * (eps + 5e-6)).double()

    found = measured(run)
    assert not found.missing
    assert found.robust.attacks["mine"]["0.08"].robust_accuracy.value == pytest.approx(4 / 6)


class Blind(Brightness):
    """Nothing leads back from its logits to the image."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.detach()).detach()


def climb(classifier: nn.Module, images: Tensor, labels: Tensor, *, eps: float, **_: object) -> Tensor:
    """One step along the gradient of a loss with a part of its own, as that of Carlini and Wagner has."""
    leaf = images.clone().requires_grad_()
    own = (leaf - 0.2).square().sum()
    loss = nn.functional.cross_entropy(classifier(leaf), labels) + own
    (gradient,) = torch.autograd.grad(loss, leaf)
    return (images + eps * gradient.sign()).clamp(0, 1)


def test_gradients_that_come_back_are_counted() -> None:
    sound = measured(climb).robust.attacks["mine"]["0.08"]
    assert sound.without_gradient == 0
    assert sound.untrusted == []
    hidden = measured(climb, Blind()).robust.attacks["mine"]["0.08"]
    assert hidden.without_gradient == int(hidden.robust_accuracy.value * 6)
    assert "mine at eps 0.08" in hidden.untrusted[0]


def test_without_gradients_there_is_no_account() -> None:
    found = measured(noise)
    assert found.robust.attacks["mine"]["0.08"].without_gradient is None
    assert "robust.attacks.mine.0.08" not in found.accounts
