"""The embedded demonstration shows what it was made to show: it is the product's own end-to-end check."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from audit.config import load_config
from audit.data.demo import demo_config
from audit.data.phantom import sample, twins
from audit.pipeline.runner import run_audit
from audit.results import AuditResult
from audit.runtime.seeds import stage_seed


def test_the_shipped_configuration_is_valid():
    config = load_config(demo_config())
    assert [c.name for c in config.classifiers] == ["plain", "trades", "trades-small", "shortcut"]
    assert [(j.name, j.copy_of) for j in config.judge_checkpoints] == [
        ("plain-again", "plain"),
        ("shortcut-again", "shortcut"),
    ]
    assert config.data.is_phantom


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def demo(folder: Path) -> AuditResult:
    return run_audit(demo_config(), folder)


def above(result: AuditResult, a: str, b: str) -> float:
    """Probability that model `a` has the higher index."""
    table = {(c.a, c.b): c.probability for c in result.comparisons}
    return table[a, b] if (a, b) in table else 1 - table[b, a]


@pytest.mark.slow
def test_every_sound_model_is_above_the_shortcut(demo):
    # No order is asked for among the sound ones: by intervention the phantom itself puts the plain model above the
    # adversarially trained ones (benchmarks/family.py), so an order here would be a wish.
    for name in ("plain", "trades", "trades-small"):
        assert above(demo, name, "shortcut") >= 0.95


@pytest.mark.slow
def test_the_shortcut_is_exposed(demo):
    model = next(m for m in demo.models if m.name == "shortcut")
    mass = {r.region: r.mass for r in model.counterfactuals.regions}
    assert mass["marker"] > mass["lesion"]
    assert model.rank == len(demo.models)


LARGEST = {"plain": 0.0085, "trades": 0.0105, "trades-small": 0.0100, "shortcut": 0.0090}
LEAST = {"plain": 0.46, "trades": 0.52, "trades-small": 0.52, "shortcut": 0.35}
"""Mean absolute change, and the share of it in the region, of `shortcut` on the marker."""


@pytest.mark.slow
def test_edits_are_small_and_lie_where_they_should(demo):
    for model in demo.models:
        mass = {r.region: r.mass for r in model.counterfactuals.regions}
        assert model.counterfactuals.l1.value <= LARGEST[model.name]
        assert mass["marker" if model.name == "shortcut" else "region"] >= LEAST[model.name]


@pytest.mark.slow
def test_edits_come_near_to_the_smallest_changes_that_are_known(demo, folder: Path):
    """The finding taken away, or for `shortcut` the marker; 1 is as far as no edit at all."""
    config = load_config(demo_config())
    phantom, seed = config.data.phantom, stage_seed(config.seed, "phantom/test")
    queries = {query.id: query for query in demo.queries}
    places = {query: int(query.removeprefix("test-")) for query in queries}
    findings = torch.ones(phantom.audit, dtype=torch.int64)
    for query, place in places.items():
        findings[place] = demo.classes.index(queries[query].label)
    factual, healthy = twins(phantom.audit, seed, phantom.marker_correlation, findings)
    unmarked = sample(phantom.audit, seed, -1.0, findings).images
    for model in demo.models:
        known = (unmarked if model.name == "shortcut" else healthy.images) - factual.images
        distances = []
        for row in model.queries:
            edit = picture(folder / row.counterfactual_image) - picture(folder / queries[row.query].inversion_image)
            wanted = known[places[row.query], 0]
            distances.append(float((edit - wanted).abs().sum() / wanted.abs().sum()))
        assert np.median(distances) <= (1.0 if model.name == "shortcut" else 0.9), model.name


def picture(path: Path) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(path).convert("L"), dtype=np.float32) / 255)


@pytest.mark.slow
def test_copies_share_most_flips_and_more_than_other_models_do(demo):
    # The smallest edits convince their own model with .9 and no more, so a copy whose boundary lies a little further
    # does not follow all of them. What counts is that it follows where models without the shortcut do not.
    for model in demo.models:
        shared = model.counterfactuals.nafr
        if model.name in ("plain", "shortcut"):
            assert shared.value >= 0.5
            assert shared.low > model.components.transfer or model.name == "plain"
        else:
            assert shared is None


@pytest.mark.slow
def test_every_model_is_flipped_at_its_operating_point(demo):
    assert len(demo.queries) == demo.queries_asked
    for model in demo.models:
        assert model.counterfactuals.flip_ratio.value >= 0.98
        assert model.counterfactuals.reached >= 0.95


@pytest.mark.slow
def test_inversions_are_faithful_and_editable_and_memory_is_bounded(demo):
    assert demo.inversion.mse <= 5e-4
    assert demo.inversion.editability >= 0.9
    assert demo.environment.peak_memory_mb <= 3 * 1024
