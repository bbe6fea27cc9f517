"""An audit says which query image alone decides what models answer to."""

from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

from audit.metrics.response import Answers
from audit.pipeline.assemble import _influence
from audit.pipeline.influence import influence_notices
from audit.pipeline.transfer import Panel

IDS = [f"test-{i}" for i in range(4)]


def told(**models: tuple[list[float], list[float]]) -> list[str]:
    answers = {
        name: Answers(*(torch.tensor(part, dtype=torch.float64) for part in (*parts, [0.0] * 4)))
        for name, parts in models.items()
    }
    return [notice.text for notice in influence_notices(answers, dict.fromkeys(answers, IDS))]


def test_a_film_that_decides_for_several_models_is_told_once_with_what_it_does():
    (text,) = told(plain=([3.0, 3, 0, 3], [0.1, 0, 0.9, 0]), trades=([1.0, 1, 0, 1], [0, 0, 1, float("nan")]))
    assert text.startswith("query image test-2 alone")
    assert "plain (response 0.90, without it 0.99), trades (response 0.75, without it 1.00)" in text
    assert "mask" in text


def test_every_film_is_told_by_itself():
    first, second = told(one=([1.0, 1, 1, 1], [1.0, 0, 0, 0]), other=([1.0, 1, 1, 1], [0, 1.0, 0, 0]))
    assert "test-0 " in first
    assert "one (" in first
    assert "test-1 " in second


def test_what_is_spread_over_films_or_changes_next_to_nothing_is_not():
    assert told(spread=([1.0, 1, 1, 1], [0.5, 0.5, 0.1, 0])) == []
    assert told(small=([1.0, 1, 1, 1], [0.02, 0, 0, 0])) == []
    assert told(nothing=([1.0, 1, 1, 1], [0.0, 0, 0, 0])) == []
    assert told(alone=([0.0, 0, 0, 0], [1.0, 0, 0, 0])) == []  # nothing is left without it


def test_an_audit_names_the_image_of_the_model_that_has_it(support_results: ModuleType, tmp_path: Path):
    audit = support_results.example_audit(tmp_path, ["trades", "plain"], n_queries=8, size=16)
    answers = Answers(torch.ones(8).double(), torch.tensor([0.0] * 7 + [2.0]).double(), torch.zeros(8).double())
    panel = Panel((), {}, {"plain": answers, "left-out": answers})
    (notice,) = _influence(SimpleNamespace(meaningfulness=SimpleNamespace(panel=panel)), audit.models)
    assert f"query image {audit.queries[7].id} alone" in notice.text
    assert "left-out" not in notice.text
    for nothing in (None, SimpleNamespace(panel=None)):
        assert _influence(SimpleNamespace(meaningfulness=nothing), audit.models) == []
