"""How long an audit will take: counts times measured steps, and nothing is changed by measuring."""

from pathlib import Path

import pytest
import torch

from audit.config import AuditConfig, RobustnessConfig, parse_config
from audit.pipeline.context import Context
from audit.pipeline.estimate import Cost, Estimate, ModelCost, _attacks, _trust, estimate
from audit.pipeline.images import read_images
from audit.pipeline.models import load_models
from audit.pipeline.networks import load_networks
from audit.runtime.environment import Stopwatch

COST = ModelCost(Cost(0.001), Cost(0.01, 100), Cost(0.1, 1000))


def test_attacks_are_counted_as_if_no_image_were_fooled():
    settings = RobustnessConfig(n=10, eps=("2/255", "8/255"), steps=9, trust=None)
    assert _attacks(settings, 3, COST, 10) == pytest.approx(2 * 10 * 10 * 0.01)
    both = settings.model_copy(update={"attacks": ("pgd", "ensemble"), "l2_eps": ("0.5",)})
    cascade = (100 + 2 * 100 + 2 * 100 * 2) * 0.01 + 5000 * 0.001
    assert _attacks(both, 3, COST, 10) == pytest.approx(3 * 10 * (10 * 0.01 + cascade))
    assert _trust(settings, COST, 10) == 0
    checked = RobustnessConfig(n=10, eps=("2/255",), steps=9)
    assert _trust(checked, COST, 10) == pytest.approx(10 * (7 * 10 * 0.01 + 500 * 0.001))


def test_the_sentence_names_what_takes_longest_and_what_is_not_in_it():
    seconds = {"a": 10.0, "b": 300.0, "c": 20.0, "d": 3600.0}
    said = Estimate(seconds, 1_500_000_000, ("'odd'",)).sentence()
    assert said.startswith("At most 1 h 05 min (d 1 h 00 min, b 5 min 00 s, c 20 s) and about 1.5 GB of memory")
    assert "without 'odd'" in said


def test_every_stage_is_measured_and_the_random_numbers_stay(tmp_path: Path):
    values = {
        "data": {"path": "phantom", "phantom": {"calibration": 60, "audit": 30}},
        "generator": {},
        "queries": {"n": 8},
        "inversion": {"pivot_steps": 10, "tuning_steps": 20},
        "robustness": {"corruptions": True},
        "classifiers": [{"name": name, "checkpoint": f"shipped:{name}"} for name in ("plain", "trades")],
    }
    config = parse_config(AuditConfig, values, "the test")
    context = Context(config, tmp_path, torch.device("cpu"), None, Stopwatch())
    images = read_images(context)
    classifiers = load_models(context, images).classifiers
    networks = load_networks(config, images.all, context.device)
    before = torch.get_rng_state()
    found = estimate(context, images, classifiers, networks)
    assert torch.equal(torch.get_rng_state(), before)
    assert set(found.seconds) == {
        "clean accuracy", "first look", "robust accuracy", "corruptions", "reliance", "calibration", "inversion",
        "counterfactuals", "ways back",
    }  # fmt: skip
    assert found.memory > 100e6
    assert found.left_out == ()

    def broken(_: torch.Tensor) -> torch.Tensor:
        raise SystemExit(0)

    classifiers[1].forward = broken  # type: ignore[method-assign]
    without = estimate(context, images, classifiers, None)
    assert without.left_out == ("'trades'",)
    assert "counterfactuals" not in without.seconds
