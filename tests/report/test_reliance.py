"""What the report says of pasted tokens is true of all of them, and no surer than their intervals."""

from pathlib import Path
from types import ModuleType

import pytest

from audit.report.reliance import findings, sentence
from audit.results import AuditResult, Interval, Intervention, ModelResult, Reaction, Reliance


def token(name: str, share: float, low: float, high: float) -> Intervention:
    hit = Interval(value=share, low=low, high=high, n=9)
    reaction = Reaction(strength=0.1, variant="", variants={}, changed=hit, shift=hit, towards=None, rise=hit)
    return Intervention(name=name, kind="token", unit="of the shorter side", reactions=[reaction])


@pytest.fixture
def audit(support_results: ModuleType, tmp_path: Path) -> AuditResult:
    return support_results.example_audit(tmp_path, ["plain"], n_queries=0)


def relying(audit: AuditResult, *tokens: Intervention) -> ModelResult:
    return audit.models[0].model_copy(update={"reliance": Reliance(n=9, interventions=list(tokens))})


def test_the_most_that_was_seen_is_told_with_its_interval(audit: AuditResult):
    # The first has the highest lower end, by which they are sorted; the frame was seen to change more.
    told = sentence(relying(audit, token("side-marker", 0.12, 0.099, 0.2), token("frame", 0.33, 0.08, 0.69)))
    assert "No pasted token surely changes more than 10" in told
    assert "by a frame of 10\N{NO-BREAK SPACE}% of the shorter side: 33\N{NO-BREAK SPACE}% [8.0, 69.0]" in told


def test_nothing_seen_is_told_with_what_it_may_be(audit: AuditResult):
    told = sentence(relying(audit, token("frame", 0.0, 0.0, 0.3)))
    assert "changes a decision of <strong>plain</strong> (0\N{NO-BREAK SPACE}% [0.0, 30.0])" in told


def test_a_fault_beyond_chance_is_told_before_the_numbers(audit: AuditResult):
    model = relying(audit, token("frame", 0.33, 0.11, 0.69))
    (told,) = findings(audit.model_copy(update={"models": [model]}))
    assert "A frame of 10" in told
    assert "changes 33" in told
