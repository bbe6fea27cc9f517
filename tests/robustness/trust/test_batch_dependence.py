"""Outputs that depend on the batch are caught, whatever couples the images; rounding and noise are not taken for it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from audit.errors import MetricError
from audit.robustness.trust.batch_dependence import IMAGES, batch_dependence, one_class


def images(n: int = 20, seed: int = 0) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """A small convolutional network; `between` is done to its features `[N, 6]`."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda features: features, norm: nn.Module | None = None):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.second = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3)
            self.head = nn.Linear(6, 4)
        self.norm, self.between = norm or nn.Identity(), between

    def forward(self, images: Tensor) -> Tensor:
        features = self.second(self.norm(self.first(images)).relu()).relu().mean(dim=(2, 3))
        return self.head(self.between(features))


def attended(features: Tensor) -> Tensor:
    return torch.softmax(features @ features.T, dim=1) @ features


def ranked(features: Tensor) -> Tensor:
    return features.argsort(dim=0).argsort(dim=0).to(features)


def by_first(features: Tensor) -> Tensor:
    return features - features[:1]


def by_place(features: Tensor) -> Tensor:
    return features + torch.arange(len(features))[:, None]


COUPLED: dict[str, Callable[[], nn.Module]] = {
    "batch norm without running statistics": lambda: Net(norm=nn.BatchNorm2d(6, track_running_stats=False)),
    "mean over the batch": lambda: Net(lambda f: f - f.mean(dim=0)),
    "range over the batch": lambda: Net(lambda f: f / f.amax(dim=0)),
    "softmax over the batch": lambda: Net(lambda f: f.softmax(dim=0)),
    "attention over the batch": lambda: Net(attended),
    "rank in the batch": lambda: Net(ranked),
    "the first image": lambda: Net(by_first),
    "the place in the batch": lambda: Net(by_place),
    "sorted by the batch": lambda: Net(lambda f: f[f.sum(dim=1).argsort()]),
    "large batches only": lambda: Net(lambda f: f if len(f) < 2 else f - f.mean(dim=0)),
}


@pytest.mark.parametrize("name", COUPLED)
def test_what_couples_the_images_of_a_batch_is_caught(name: str) -> None:
    check = batch_dependence(COUPLED[name]().eval(), images())
    assert check.passed is False
    assert check.value > check.limit
    assert "depends on the other images of its batch" in check.finding
    assert check.n == IMAGES


def traced_in_training() -> nn.Module:
    return torch.jit.trace(Net(norm=nn.BatchNorm2d(6)).train(), images(), check_trace=False)


def test_a_network_traced_in_training_mode_is_caught() -> None:
    check = batch_dependence(traced_in_training(), images())
    assert check.passed is False


def autocast(images: Tensor, net: nn.Module = Net(norm=nn.BatchNorm2d(6)).eval()) -> Tensor:  # noqa: B008
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net(images).float()


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, images: Tensor) -> Tensor:
        return self.function(images)


class Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.net = dtype, Net(norm=nn.BatchNorm2d(6)).to(dtype)

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.to(self.dtype))


SOUND: dict[str, Callable[[], nn.Module]] = {
    "plain": Net,
    "batch norm": lambda: Net(norm=nn.BatchNorm2d(6)),
    "instance norm": lambda: Net(norm=nn.InstanceNorm2d(6)),
    "group norm": lambda: Net(norm=nn.GroupNorm(2, 6)),
    "bfloat16": lambda: Cast(torch.bfloat16),
    "float16": lambda: Cast(torch.float16),
    "float64": lambda: Cast(torch.float64),
    "autocast": lambda: Function(autocast),
    "traced": lambda: torch.jit.trace(Net(norm=nn.BatchNorm2d(6)).eval(), images()),
    "constant": lambda: Function(lambda x: torch.tensor([1.0, 0.0]).expand(len(x), 2)),
    "large logits": lambda: Net(lambda f: f * 1e6),
    "tiny logits": lambda: Net(lambda f: f * 1e-6),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_network_passes(name: str) -> None:
    check = batch_dependence(SOUND[name]().eval(), images())
    assert check.passed is True, check.finding
    assert check.value <= check.limit


def test_a_coarser_type_widens_the_limit_and_no_further_than_it_must() -> None:
    limits = {name: batch_dependence(SOUND[name]().eval(), images()).limit for name in SOUND}
    assert limits["plain"] == limits["batch norm"] == limits["float64"] == 1e-3
    assert limits["float16"] < limits["bfloat16"] == limits["autocast"] < 0.1
    coupled = Cast(torch.bfloat16)
    coupled.net.norm = nn.BatchNorm2d(6, track_running_stats=False).bfloat16()
    assert batch_dependence(coupled.eval(), images()).passed is False


@pytest.mark.parametrize("share", [1e-2, 1.0])
def test_noise_is_not_taken_for_dependence(share: float) -> None:
    check = batch_dependence(Net(lambda f: f + share * torch.randn_like(f)).eval(), images())
    assert check.passed is None
    assert "draws at random" in check.finding


def test_a_rare_draw_is_not_taken_for_dependence() -> None:
    for seed in range(10):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            check = batch_dependence(Net(lambda f: f + float(torch.rand(()) < 0.3)).eval(), images())
        assert check.passed is not False


def test_dependence_is_seen_through_a_little_noise() -> None:
    check = batch_dependence(Net(lambda f: f - f.mean(dim=0) + 1e-3 * torch.randn_like(f)).eval(), images())
    assert check.passed is False


def test_a_batch_that_is_refused_is_a_row_and_no_error() -> None:
    def needs_two(features: Tensor) -> Tensor:
        if len(features) < 2:
            raise ValueError("expected more than 1 image")
        return features

    check = batch_dependence(Net(needs_two).eval(), images())
    assert check.passed is None
    assert "does not take these images alone" in check.finding
    coupled = batch_dependence(Net(lambda f: needs_two(f) - f.mean(dim=0)).eval(), images())
    assert coupled.passed is False
    broken = batch_dependence(Net(lambda f: f * torch.nan).eval(), images())
    assert broken.passed is None


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_images_suffice(n: int) -> None:
    coupled = Net(norm=nn.BatchNorm2d(6, track_running_stats=False)).eval()
    assert batch_dependence(coupled, images(n)).passed is False
    assert batch_dependence(Net().eval(), images(n)).passed is True


def test_no_image_and_bad_images() -> None:
    assert batch_dependence(Net(), images(0)).passed is None
    with pytest.raises(MetricError):
        batch_dependence(Net(), images() * 2)


def test_mode_and_global_generators_are_untouched() -> None:
    network = Net(lambda f: f + torch.randn_like(f)).train()
    state = torch.get_rng_state()
    batch_dependence(network, images())
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training


def test_one_answer_to_images_of_several_classes_is_no_robustness() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2])
    check = one_class(torch.ones(5, dtype=torch.int64), labels, ("a", "b", "c"))
    assert check is not None
    assert check.passed is False
    assert "answers 'b' to all 5 images, 3 of which are of other classes" in check.finding
    assert one_class(labels, labels, ("a", "b", "c")) is None
    assert one_class(torch.zeros(2, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), ("a", "b")) is None
