"""Precision and recall agree with torch-fidelity's on the same embeddings."""

import pytest
import torch

from audit.metrics.precision_recall import precision_recall

reference = pytest.importorskip("torch_fidelity.metric_prc", reason="torch-fidelity is the reference")


@pytest.mark.parametrize("shift", [0.0, 0.7, 2.0])
def test_agrees_with_torch_fidelity(shift: float) -> None:
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randn(300, 8, generator=rng) + shift / 8**0.5
    real = torch.randn(280, 8, generator=rng)
    found = reference.prc_features_to_metric(
        drawn, real, prc_neighborhood=3, prc_batch_size=64, save_cpu_ram=False, verbose=False
    )
    expected = (found[reference.KEY_METRIC_PRECISION], found[reference.KEY_METRIC_RECALL])
    assert precision_recall(drawn, real) == pytest.approx(expected, abs=1.5 / 280)
