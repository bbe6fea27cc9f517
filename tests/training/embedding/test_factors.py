"""The factor network's training: disturbances stay pixels, a tiny run writes weights that load again."""

import json
from pathlib import Path

import torch

from audit.embeddings.phantom_factors import load_phantom_factors
from audit.training.classifier.config import FactorsTrainConfig
from audit.training.embedding.factors import disturb, train_factors


def test_disturbance_stays_in_bounds_and_within_its_amplitude() -> None:
    images = torch.rand(16, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    out = disturb(images, noise=0.05, blur=0.0, generator=torch.Generator().manual_seed(1))
    assert ((out >= 0) & (out <= 1)).all()
    assert 0 < (out - images).std() < 0.05
    assert torch.equal(disturb(images, 0.0, 0.0, torch.Generator()), images)
    blurred = disturb(images, 0.0, 1.0, torch.Generator().manual_seed(1))
    changed = (blurred != images).flatten(1).any(dim=1)
    assert changed.any()
    assert not changed.all()


def test_a_tiny_training_writes_weights_and_card(tmp_path: Path) -> None:
    config = FactorsTrainConfig.model_validate(
        {"optimiser": {"steps": 2, "batch_size": 8}, "selection": {"every": 1, "n": 10}, "n_evaluation": 10}
    )
    path = train_factors(config, tmp_path)
    network = load_phantom_factors(path)
    card = json.loads(path.with_suffix(".json").read_text())
    assert card["weights_sha256"] == network.weights_sha256
    assert list(card["scores"]["r_squared"]) == list(network.factor_names)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["phantom-factors.json", "phantom-factors.safetensors"]
