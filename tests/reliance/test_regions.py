"""What is left without a region: in-painting keeps what is known, and a model that reads the region loses it."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from audit.data.audit_set import AuditSet
from audit.reliance.regions import TREATMENTS, inpaint, treated
from audit.reliance.run import Shown
from audit.results import Treated
from audit.robustness.panel import Panel


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), height=st.integers(1, 21), width=st.integers(1, 21), share=st.floats(0.05, 0.95))
def test_what_is_known_stays_and_what_is_filled_lies_between(seed: int, height: int, width: int, share: float):
    draw = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 2, height, width, generator=draw)
    holes = torch.rand(2, height, width, generator=draw) < share
    filled = inpaint(images, holes)
    assert torch.equal(torch.where(holes[:, None], 0, filled), torch.where(holes[:, None], 0, images))
    for one, hole, was in zip(filled, holes, images, strict=True):
        if not hole.all():
            known = was[:, ~hole]
            assert bool((one.amin((1, 2)) >= known.amin(1) - 1e-5).all())
            assert bool((one.amax((1, 2)) <= known.amax(1) + 1e-5).all())
        else:
            assert torch.equal(one, was)


def test_a_hole_in_an_even_image_is_not_seen():
    holes = torch.zeros(1, 15, 22, dtype=torch.bool)
    holes[:, 3:12, 5:20] = True
    images = torch.where(holes[:, None], 1.0, 0.3)
    torch.testing.assert_close(inpaint(images, holes), torch.full((1, 1, 15, 22), 0.3))


class Patch(nn.Module):
    """Decides by the brightness of the middle ("region") or of the upper left corner."""

    def __init__(self, middle: bool) -> None:
        super().__init__()
        self.place = slice(6, 10) if middle else slice(0, 4)

    def forward(self, images: Tensor) -> Tensor:
        bright = images[..., self.place, self.place].mean(dim=(1, 2, 3)) - 0.4
        return torch.stack([-bright, bright], dim=1) * 50


def both_tell(n: int = 24) -> AuditSet:
    """The class is told by the middle, which has a mask, and by a corner; the last image has no mask."""
    labels = np.arange(n) % 2
    images = np.full((n, 16, 16), 0.2, dtype=np.float32)
    images[labels == 1, 6:10, 6:10] = 0.9
    images[labels == 1, :4, :4] = 0.9
    mask = np.zeros((16, 16), dtype=bool)
    mask[6:10, 6:10] = True
    return AuditSet(
        read_image=lambda row: images[row],
        labels=labels,
        class_names=("off", "on"),
        ids=tuple(map(str, range(n))),
        splits=np.array(["test"] * n),
        image_shape=(1, 16, 16),
        regions={"region": lambda row: None if row == n - 1 else mask, "none": lambda row: None},
    )


def told(model: nn.Module) -> dict[tuple[str, str], Treated]:
    (rows,) = treated(Panel({"it": model}), Shown(both_tell(), 5, torch.device("cpu"), 0), "region").values()
    return {(row.part, row.treatment): row for row in rows}


def test_a_model_that_reads_the_region_needs_it_and_nothing_else():
    found = told(Patch(middle=True))
    assert {row.n for row in found.values()} == {23}
    assert all(row.clean_accuracy.value == 1 for row in found.values())
    assert found["region", "in-painted"].accuracy.value == 12 / 23  # of "off" all, of "on" none
    assert found["region", "exchanged"].accuracy.value == 0
    assert found["region", "exchanged"].follow.value == 1
    for treatment in TREATMENTS:
        assert found["rest", treatment].stay_right.value == 1
    assert found["region", "blurred"].follow.value is None


def test_a_model_that_reads_something_else_stays_right_without_the_region():
    found = told(Patch(middle=False))
    for treatment in TREATMENTS:
        assert found["region", treatment].stay_right.value == 1
    assert found["rest", "exchanged"].follow.value == 1


def test_a_region_that_no_image_has_is_left_out_and_a_failure_is_a_value():
    shown = Shown(both_tell(), 5, torch.device("cpu"), 0)
    panel = Panel({"failing": nn.Identity(), "good": Patch(middle=True)})
    assert treated(panel, shown, "none") == {"failing": [], "good": []}
    assert list(treated(panel, shown, "region")) == list(panel.standing) == ["good"]
