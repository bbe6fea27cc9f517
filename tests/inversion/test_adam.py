"""Rows are optimised as torch's own Adam would, each as if it were alone."""

import pytest
import torch
from torch.testing import assert_close

from audit.inversion.adam import RowAdam, cosine


def gradients(rows: torch.Tensor, aim: torch.Tensor) -> torch.Tensor:
    return 2 * (rows - aim)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.8, 0.95)])
def test_update_agrees_with_torch(betas: tuple[float, float]) -> None:
    rng = torch.Generator().manual_seed(0)
    aim = torch.randn(3, 5, generator=rng)
    ours, theirs = torch.zeros(3, 5), torch.zeros(3, 5, requires_grad=True)
    adam, reference = RowAdam(ours, betas), torch.optim.Adam([theirs], lr=0.1, betas=betas)
    for _ in range(20):
        adam.update(ours, gradients(ours, aim), 0.1)
        theirs.grad = gradients(theirs.detach(), aim)
        reference.step()
    assert_close(ours, theirs.detach())


def test_dropping_rows_leaves_the_others_as_they_were() -> None:
    rng = torch.Generator().manual_seed(1)
    aim = torch.randn(4, 3, generator=rng)
    whole, rows = torch.zeros(4, 3), torch.zeros(4, 3)
    one, two = RowAdam(whole), RowAdam(rows)
    stay = torch.tensor([True, False, True, False])
    for step in range(10):
        one.update(whole, gradients(whole, aim), 0.05)
        if step == 4:
            rows, aim_left = rows[stay], aim[stay]
            two.keep(stay)
        two.update(rows, gradients(rows, aim if step < 4 else aim_left), 0.05)
    assert_close(rows, whole[stay])


def test_cosine_falls_from_one_to_its_floor() -> None:
    values = [cosine(step, 10, 0.2) for step in range(11)]
    assert values[0] == 1
    assert abs(values[-1] - 0.2) < 1e-12
    assert values == sorted(values, reverse=True)
