"""Our contrastive loss against lightly's, which is a peer for tests only: it brings hydra and pytorch_lightning."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.training.embedding.contrastive import nt_xent

reference = pytest.importorskip("lightly.loss.ntx_ent_loss", reason="lightly, a peer of tests, is not installed")


@given(
    n=st.integers(2, 24),
    width=st.integers(2, 40),
    temperature=st.floats(0.05, 2.0),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=25, deadline=None)
def test_loss_and_gradient_agree(n: int, width: int, temperature: float, seed: int) -> None:
    ours = (3 * torch.randn(2 * n, width, generator=torch.Generator().manual_seed(seed))).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    loss = nt_xent(ours, temperature)
    expected = reference.NTXentLoss(temperature=temperature)(*theirs.chunk(2))
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)
