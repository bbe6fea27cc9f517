"""Models are shown the same images: a shortcut is found, a failing model harms no other, batches change nothing."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from audit.data.audit_set import AuditSet
from audit.reliance.interventions import INTERVENTIONS
from audit.reliance.run import Reacted, Shown, reactions
from audit.robustness.panel import Panel
from audit.runtime.seeds import stage_generator


class Corner(nn.Module):
    """Decides by the brightness of the upper right corner."""

    def forward(self, images: Tensor) -> Tensor:
        bright = images[..., :8, -8:].mean(dim=(1, 2, 3)) - 0.1
        return torch.stack([-bright, bright], dim=1) * 50


class Blind(nn.Module):
    """Answers every image alike."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.tensor([[1.0, 0.0]]).expand(len(images), 2)


class Failing(nn.Module):
    """Fails on any image with a white pixel."""

    def forward(self, images: Tensor) -> Tensor:
        if float(images.max()) == 1:
            raise RuntimeError("too bright")
        return Blind()(images)


def dark(n: int = 30) -> AuditSet:
    pixels = torch.rand(n, 32, 32, generator=stage_generator(0, "dark")).numpy() * 0.05
    return AuditSet(
        read_image=lambda row: pixels[row].astype(np.float32),
        labels=np.arange(n) % 2,
        class_names=("off", "on"),
        ids=tuple(f"image-{i}" for i in range(n)),
        splits=np.array(["test"] * n),
        image_shape=(1, 32, 32),
    )


CHOSEN = {name: INTERVENTIONS.builtin[name] for name in ("blur", "side-marker", "exposure")}


def shown(batch_size: int = 8) -> Shown:
    return Shown(dark(), batch_size, torch.device("cpu"), 0)


def reacted(model: nn.Module, images: Shown) -> Reacted:
    return reactions(Panel({"it": model}), images, CHOSEN)["it"]


def test_a_corner_that_decides_is_found_and_ranked_first():
    found = reactions(Panel({"corner": Corner(), "blind": Blind()}), shown(), CHOSEN)
    corner, blind = found["corner"], found["blind"]
    first = corner.rows[0]
    assert (first.name, first.kind, first.source) == ("side-marker", "token", None)
    assert first.worst.variant == "top right"
    assert first.worst.changed.value == 1
    assert (first.worst.towards, first.worst.of_class) == ("on", "off")
    assert all(one.changed.value == 0 == one.shift.value for row in blind.rows for one in row.reactions)
    assert blind.examples == {}


def test_an_image_that_flips_is_shown_as_it_was_and_as_it_is():
    example = reacted(Corner(), shown()).examples["side-marker"]
    assert (example.before, example.after) == ("off", "on")
    model = Corner()
    assert [int(model(one[None]).argmax()) for one in (example.image, example.changed)] == [0, 1]
    assert torch.equal(example.image, dark().select([dark().ids.index(example.id)]).images()[0])


def test_a_model_that_fails_is_an_error_and_the_others_go_on():
    panel = Panel({"failing": Failing(), "blind": Blind()})
    found = reactions(panel, shown(), CHOSEN)
    assert "too bright" in str(panel.failed["failing"])
    assert list(found) == ["blind"]
    assert len(found["blind"].rows) == 3


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_the_size_of_batches_changes_nothing(batch_size: int):
    usual, other = (reacted(Corner(), shown(size)) for size in (8, batch_size))
    assert _rounded(usual) == _rounded(other)


def _rounded(found: Reacted) -> list[object]:
    return [
        (row.name, one.strength, one.variant, one.changed, round(one.shift.value or 0, 5))
        for row in found.rows
        for one in row.reactions
    ]


def test_no_batch_is_larger_than_asked_and_modes_and_random_numbers_stay():
    sizes = []
    model = Corner()
    model.register_forward_hook(lambda module, given, out: sizes.append(len(given[0])))
    model.train()
    state = torch.get_rng_state()
    reacted(model, shown(8))
    assert max(sizes) == 8
    assert model.training
    assert torch.equal(state, torch.get_rng_state())
