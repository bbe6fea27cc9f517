"""Trust checks: every planted defence that fools PGD is caught, and no sound model is flagged."""

import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binom
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from audit.classifiers.load import load_classifier
from audit.config import ClassifierConfig, EnsembleConfig, RobustnessConfig, TrustConfig
from audit.data.phantom import CLASS_NAMES, sample
from audit.errors import ClassifierError, MetricError
from audit.results import Norm, TrustCheck
from audit.robustness.attacks.pgd import pgd_attack
from audit.robustness.trust import checks as trust
from audit.robustness.trust.case import TOLERATED, chance_limit, excess_of
from audit.robustness.trust.checks import CHECKS, ensemble_beats_pgd, trust_checks, trusted, untrusted_reasons

EPS, STEPS = 0.2, 10
TRUST = TrustConfig(n=48, square_queries=100, more_steps=3)
CONFIG = RobustnessConfig(steps=STEPS, trust=TRUST)


def digits() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.from_numpy(data.images).float()[:, None] / 16, torch.from_numpy(data.target).long()


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A plain small CNN for the 8x8 digits: far from robust at eps 0.2."""
    images, labels = digits()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Flatten(), nn.Linear(32 * 16, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        for _ in range(150):
            rows = torch.randint(1000, (128,))
            loss = functional.cross_entropy(net(images[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


def held_out(seed: int = 0, n: int = TRUST.n) -> tuple[Tensor, Tensor]:
    images, labels = digits()
    rows = 1000 + torch.randperm(len(images) - 1000, generator=torch.Generator().manual_seed(seed))[:n]
    return images[rows], labels[rows]


def checks_of(
    classifier: nn.Module, seed: int = 0, *, n: int = TRUST.n, eps: float = EPS, norm: Norm = "Linf", **changed: object
) -> dict[str, TrustCheck]:
    images, labels = held_out(seed, n)
    config = CONFIG.model_copy(update=changed)
    checks = trust_checks(classifier, images, labels, config, norm=norm, eps=eps, seed=seed)
    return {check.name: check for check in checks}


class Defence(nn.Module):
    """`before` is done to the images and `after` to the logits of `network`."""

    def __init__(
        self,
        network: nn.Module,
        before: Callable[[Tensor], Tensor] = lambda images: images,
        after: Callable[[Tensor], Tensor] = lambda logits: logits,
    ) -> None:
        super().__init__()
        self.network, self.before, self.after = network, before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.network(self.before(images)))


def quantised(images: Tensor) -> Tensor:
    return (images * 4).round() / 4


def noisy(images: Tensor) -> Tensor:
    return images + 0.1 * torch.randn_like(images)


def jpeg(images: Tensor) -> Tensor:
    """A real JPEG, which no gradient passes."""
    decoded = []
    for image in images.detach():
        file = io.BytesIO()
        Image.fromarray((image[0] * 255).round().byte().numpy()).save(file, "JPEG", quality=90)
        decoded.append(torch.from_numpy(np.array(Image.open(file)))[None])
    return torch.stack(decoded).float() / 255


def cosine_basis() -> Tensor:
    k = torch.arange(8.0)
    basis = torch.cos(torch.pi * (2 * k[None] + 1) * k[:, None] / 16) / 2
    basis[0] /= 2**0.5
    return basis


def rounded_cosines(images: Tensor) -> Tensor:
    """What is lossy in JPEG: the coefficients of the 8x8 cosine transform, rounded; the graph is whole."""
    basis = cosine_basis()
    coefficients = (basis @ images @ basis.T * 16).round() / 16
    return basis.T @ coefficients @ basis


def winner_takes_all(logits: Tensor) -> Tensor:
    """Logits so steep about the middle of the best two that the clamp holds all of them: +1 for the best, else -1."""
    best = logits.topk(2, dim=1).values
    return ((logits - best.mean(dim=1, keepdim=True)) * 1e4).clamp(-1, 1)


def wavy(images: Tensor) -> Tensor:
    """Quantisation behind a gradient that is never zero and always wrong: that of a fast sine."""
    wave = 0.01 * torch.sin(images * 1000)
    return quantised(images).detach() + wave - wave.detach()


DEFENCES: dict[str, tuple[dict[str, Callable[[Tensor], Tensor]], set[str]]] = {
    "quantised": ({"before": quantised}, {"zero-gradients", "black-box-beats-white-box", "large-eps"}),
    "noise": ({"before": noisy}, {"randomised-forward"}),
    "cold-softmax": ({"after": lambda logits: (logits / 1e-3).softmax(dim=1)}, {"softmax-output", "zero-gradients"}),
    "jpeg": ({"before": jpeg}, {"zero-gradients", "black-box-beats-white-box", "large-eps"}),
    "rounded-cosines": ({"before": rounded_cosines}, {"zero-gradients", "black-box-beats-white-box", "large-eps"}),
    "clamp": ({"after": winner_takes_all}, {"zero-gradients", "large-eps"}),
    "wavy": ({"before": wavy}, {"black-box-beats-white-box", "large-eps"}),
    "sharp-logits": ({"after": lambda logits: logits * 1e3}, {"saturated-loss", "black-box-beats-white-box"}),
}
"""Each defence with the checks that have to fail on it."""


@pytest.mark.parametrize("name", DEFENCES)
def test_planted_defence_fools_pgd_and_is_caught(name: str, network: nn.Module) -> None:
    changes, expected = DEFENCES[name]
    defended = Defence(network, **changes).eval()
    assert pgd_accuracy(defended) > pgd_accuracy(network) + 0.1
    checks = list(checks_of(defended).values())
    assert expected <= {check.name for check in checks if check.passed is False}
    assert trusted(checks) is False
    assert untrusted_reasons(checks, "pgd")


def pgd_accuracy(classifier: nn.Module) -> float:
    images, labels = held_out()
    generator = torch.Generator().manual_seed(0)
    adversarial = pgd_attack(classifier, images, labels, eps=EPS, steps=STEPS, generator=generator)
    with torch.no_grad():
        return float((classifier(adversarial).argmax(dim=1) == labels).float().mean())


@pytest.mark.parametrize("name", ["plain", "shortcut", "trades-small", "trades"])
def test_shipped_classifier_is_not_flagged(name: str) -> None:
    classifier = load_classifier(ClassifierConfig(name=name, checkpoint=f"shipped:{name}"), (1, 64, 64), CLASS_NAMES)
    batch = sample(24, seed=7)
    config = RobustnessConfig(steps=10, trust=TrustConfig(n=24, square_queries=60, more_steps=2))
    checks = trust_checks(classifier, batch.images, batch.labels, config, norm="Linf", eps=8 / 255, seed=0)
    assert [check.finding for check in checks if check.passed is not True] == []
    assert trusted(checks) is True


@pytest.mark.parametrize("seed", range(3))
def test_small_plain_network_is_not_flagged(network: nn.Module, seed: int) -> None:
    checks = list(checks_of(network, seed).values())
    assert [check.finding for check in checks if check.passed is not True] == []
    assert trusted(checks) is True


def test_a_confident_model_whose_cross_entropy_underflows_has_usable_gradients(network: nn.Module) -> None:
    confident = Defence(network, after=lambda logits: logits * 1e3).eval()
    images = held_out()[0].requires_grad_()
    logits = confident(images)
    (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, logits.argmax(dim=1), reduction="sum"), images)
    assert (gradient.flatten(1) == 0).all(dim=1).float().mean() > 0.5
    check = checks_of(confident)["zero-gradients"]
    assert check.passed is True
    assert check.value == 0


def test_failures_mark_the_attacks_they_speak_about(network: nn.Module) -> None:
    sharp = Defence(network, **DEFENCES["sharp-logits"][0]).eval()
    # The ensemble's scale-free losses and Square see through sharp logits; without them its number falls as well.
    checks = list(checks_of(sharp).values())
    assert untrusted_reasons(checks, "pgd")
    assert untrusted_reasons(checks, "ensemble") == []
    alone = list(checks_of(sharp, ensemble=EnsembleConfig(stages=("apgd-ce",))).values())
    assert len(untrusted_reasons(alone, "ensemble")) >= 2
    masked = list(checks_of(Defence(network, before=wavy).eval()).values())
    assert untrusted_reasons(masked, "ensemble")


def test_more_steps_help_where_pgd_has_too_few(network: nn.Module) -> None:
    checks = checks_of(network, steps=1, step_size=0.02, trust=TrustConfig(n=48, square_queries=1, more_steps=20))
    assert checks["more-steps"].passed is False
    assert checks["more-steps"].attacks == ("pgd",)
    assert untrusted_reasons(list(checks.values()), "ensemble") == []


def test_rows_are_complete_and_in_order(network: nn.Module) -> None:
    checks = checks_of(network)
    assert list(checks) == [name for name, _ in CHECKS]
    for check in checks.values():
        assert check.value is not None
        assert check.limit is not None
        assert check.value <= check.limit
        assert check.n > 40
        assert check.finding.endswith(".")


def test_equal_seeds_give_equal_rows_and_leave_no_trace(network: nn.Module) -> None:
    network.train()
    try:
        state, mode = torch.get_rng_state(), [module.training for module in network.modules()]
        first = checks_of(network, 5)
        checks_of(Defence(network, before=noisy), 5)
        assert torch.equal(torch.get_rng_state(), state)
        assert [module.training for module in network.modules()] == mode
        assert all(parameter.requires_grad for parameter in network.parameters())
        assert checks_of(network, 5) == first
    finally:
        network.eval()


def test_few_correct_images_leave_attacks_open(network: nn.Module) -> None:
    images, labels = held_out()
    wrong = (network(images).argmax(dim=1) + 1) % 10
    wrong[:5] = labels[:5]
    checks = trust_checks(network, images, wrong, CONFIG, norm="Linf", eps=EPS, seed=0)
    found = {check.name: check for check in checks}
    assert found["softmax-output"].passed is True
    for name in ("zero-gradients", "saturated-loss", "black-box-beats-white-box", "large-eps", "more-steps", "bounds"):
        assert found[name].passed is None
        assert found[name].value is None
    assert "classified correctly" in found["large-eps"].finding
    assert trusted(checks) is None
    assert untrusted_reasons(checks, "pgd") == []


def test_no_image_at_all(network: nn.Module) -> None:
    none = torch.empty(0, dtype=torch.int64)
    checks = trust_checks(network, torch.empty(0, 1, 8, 8), none, CONFIG, norm="Linf", eps=EPS, seed=0)
    assert [check.passed for check in checks] == [None] * len(CHECKS)
    assert trusted(checks) is None
    assert trusted([]) is None


def test_classifier_that_breaks_down_under_attack_is_a_row_and_no_crash(network: nn.Module) -> None:
    class Brittle(nn.Module):
        """Refuses images that need a gradient, as one that turns to NumPy does, and images it has not seen."""

        def forward(self, images: Tensor) -> Tensor:
            torch.from_numpy(images.numpy())
            return network(images)

    checks = checks_of(Brittle())
    assert checks["zero-gradients"].passed is False
    assert checks["large-eps"].passed is None
    assert trusted(list(checks.values())) is False


def test_gradients_that_are_not_finite_fail(network: nn.Module) -> None:
    def poisoned(images: Tensor) -> Tensor:
        # The square root of 0 has an infinite slope, and 0 times it is NaN.
        return images + 0 * torch.zeros_like(images).mul(images).sqrt()

    check = checks_of(Defence(network, before=poisoned).eval())["zero-gradients"]
    assert check.passed is False
    assert check.value == 1


def test_batches_outside_their_ball_fail() -> None:
    images = torch.full((2, 1, 2, 2), 0.5)
    assert excess_of(images + 0.1, images, 0.1) == pytest.approx(0, abs=1e-6)
    assert excess_of(images + 0.3, images, 0.1) == pytest.approx(0.2, abs=1e-6)
    assert excess_of(images + 0.7, images, 0.7) == pytest.approx(0.2, abs=1e-6)
    assert excess_of(images * torch.nan, images, 0.1) == float("inf")


def test_an_attack_outside_its_ball_fails_the_check_of_bounds(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "square_attack", lambda classifier, images, *rest, **more: images + 2 * EPS)
    checks = checks_of(network)
    assert checks["bounds"].passed is False
    assert checks["bounds"].value > EPS / 2


def test_limit_allows_for_chance_and_narrows() -> None:
    for n in (8, 30, 64, 500):
        allowed = round(chance_limit(n) * n)
        assert binom.cdf(allowed, n, TOLERATED) >= 0.99
        assert binom.cdf(allowed - 1, n, TOLERATED) < 0.99
    assert chance_limit(8) > chance_limit(64) > chance_limit(500) > TOLERATED


def test_bad_input_is_refused(network: nn.Module) -> None:
    images, labels = held_out()
    settings: dict = {"norm": "Linf", "eps": EPS, "seed": 0}
    with pytest.raises(MetricError):
        trust_checks(network, images * 2, labels, CONFIG, **settings)
    with pytest.raises(MetricError):
        trust_checks(network, images, labels + 10, CONFIG, **settings)
    with pytest.raises(MetricError):
        trust_checks(network, images, labels, CONFIG, **{**settings, "eps": 2.0})
    with pytest.raises(ClassifierError):
        trust_checks(Defence(network, after=lambda logits: logits * torch.nan), images, labels, CONFIG, **settings)


def test_the_ensemble_marks_pgd_at_the_radii_where_it_finds_much_more() -> None:
    stands = torch.ones(100, dtype=torch.bool)
    few, many = stands.clone(), stands.clone()
    few[:3], many[:20] = False, False
    calm, beaten = ensemble_beats_pgd({("Linf", "2/255"): (stands, few), ("Linf", "8/255"): (few, few)})
    assert calm.passed
    assert calm.value == pytest.approx(0.03)
    assert not beaten
    assert calm.eps == pytest.approx(2 / 255)
    loud, beaten = ensemble_beats_pgd({("Linf", "2/255"): (stands, few), ("Linf", "8/255"): (stands, many)})
    assert loud.passed is False
    assert "At eps 8/255 the ensemble fools 20 of 100 images" in loud.finding
    assert beaten == {("Linf", "8/255"): loud.finding}
