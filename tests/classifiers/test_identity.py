"""What makes a classifier the one that it is: weights, settings and code, and not its name."""

from pathlib import Path

import torch
from torch import nn

from audit.classifiers.black_box import BlackBox
from audit.classifiers.classifier import Classifier
from audit.classifiers.identity import identity, stages_of
from audit.storage.cache import Store
from audit.storage.stages import Stages


def classifier(network: nn.Module, **more: object) -> Classifier:
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.01)
    given = {"name": "one", "class_names": ("a", "b"), "input_shape": (1, 8, 8)} | more
    return Classifier(network.eval(), **given)


def plain(stride: int = 2, **more: object) -> Classifier:
    return classifier(
        nn.Sequential(nn.AvgPool2d(2, stride), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 2)), **more
    )


def test_a_name_is_no_part_of_it() -> None:
    assert identity(plain()) == identity(plain(name="other", source="elsewhere"))


def test_settings_of_input_and_modules_are() -> None:
    changed = plain()
    with torch.no_grad():
        changed.network.head.weight[0, 0] = 1
    found = [
        plain(), plain(mean=[0.5]), plain(class_names=("b", "a")), plain(order=[1, 0]), plain(stride=1), changed,
        plain().with_input(size=(16, 16)),
    ]  # fmt: skip
    assert len({identity(one) for one in found}) == len(found)


def test_the_users_code_is() -> None:
    one, other = plain(), plain()
    one.content, other.content = "a", "b"
    assert identity(one) != identity(other)


def test_of_what_nobody_knows_the_code_nothing_is_kept(tmp_path: Path) -> None:
    kept = Stages(Store(tmp_path))
    box = classifier(BlackBox(lambda pixels: pixels.reshape(len(pixels), -1)[:, :2]))
    assert stages_of(kept, box).store is None
    assert stages_of(kept, plain()).store == kept.store


def test_a_program_is_known_by_its_code() -> None:
    def traced(stride: int) -> Classifier:
        network = nn.Sequential(nn.AvgPool2d(2, stride), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 2))
        for parameter in network.parameters():
            nn.init.constant_(parameter, 0.01)
        return Classifier(
            torch.jit.trace(network.eval(), torch.rand(2, 1, 8, 8)), name="one", class_names=("a", "b"),
            input_shape=(1, 8, 8),
        )  # fmt: skip

    assert identity(traced(2)) == identity(traced(2)) != identity(traced(1))
