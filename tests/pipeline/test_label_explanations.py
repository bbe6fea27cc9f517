"""Counterfactuals of labels: against the audit of two classes, on images whose truth is known, and end to end."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from support_explained import image_set
from support_labels import TWO_NAMES, write_explained_audit
from support_small_audit import Small
from torch import Tensor, nn

from audit.classifiers.classifier import Classifier
from audit.classifiers.outputs import AnswerSettings
from audit.config import AuditConfig
from audit.counterfactual.answers import judged
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, InvertedQueries, SearchNetworks
from audit.data.audit_set import AuditSet
from audit.gate.evaluate import evaluate_gate
from audit.gate.policy import Policy, metrics_of
from audit.gate.ranges import range_of
from audit.pipeline import label_explanations
from audit.pipeline.calibrate import calibrate
from audit.pipeline.explain import Subject
from audit.pipeline.label_explanations import explain_labels
from audit.pipeline.labels import Labelled, measure_labels
from audit.pipeline.meaningfulness import Meaningfulness, explain_models
from audit.pipeline.runner import run_audit
from audit.report.build import report_pages
from audit.results import AuditResult, NotComputed, OffTarget, read_results
from audit.robustness.accuracy import clean_of_logits, predict
from audit.runtime.progress import Advance

HALVES = ("left", "right")
LEFT, RIGHT, BOTH = [1.0, 0, 1, 0], [0.0, 1, 0, 1], [0.5, 0.5, 0.5, 0.5]


def classifier(*rows: Sequence[float], names: tuple[str, ...] = HALVES) -> Classifier:
    """Says of each label whether the weighted mean of the four quarters is above a half."""
    head = nn.Linear(4, len(rows))
    with torch.no_grad():
        head.weight.copy_(10 * torch.tensor(rows))
        head.bias.fill_(-10.0)
    network = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), head)
    answer = AnswerSettings(independent=True)
    return Classifier(network.eval(), name="one", class_names=names, input_shape=(1, 16, 16), answer=answer)


def halves(n: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Images whose left and right half are dark or bright, in all four ways, and which of them are bright."""
    labels = torch.stack([torch.arange(n) % 2, torch.arange(n) // 2 % 2], dim=1)
    noise = torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) - 0.5
    shade = (0.25 + 0.5 * labels).repeat_interleave(8, dim=1)[:, None, None, :]
    return (shade + 0.3 * noise).clamp(0, 1), labels.numpy()


def of_labels(images: Tensor, labels: np.ndarray, names: tuple[str, ...] = HALVES) -> AuditSet:
    return replace(image_set(images, torch.zeros(len(images), dtype=torch.int64)), labels=labels, class_names=names)


@dataclass(frozen=True)
class LeftMirrored:
    """A method that exchanges black and white in the left half alone."""

    def explain(
        self,
        subject: CalibratedClassifier,
        networks: SearchNetworks,
        queries: InvertedQueries,
        targets: Tensor,
        advance: Advance,
    ) -> Counterfactuals:
        images = queries.inversion.images.clone()
        images[..., :8] = 1 - images[..., :8]
        return judged(subject, queries, targets, images)


def explained(
    small: Small, *classifiers: Classifier, labels: np.ndarray | None = None, **queries: object
) -> tuple[Small, Labelled]:
    """Explain classifiers of the two halves by exchanging black and white on the left."""
    names, config = classifiers[0].class_names, small.context.config
    audited, known = halves(12, 1), halves(80, 2)
    truths = (audited[1] if labels is None else labels, known[1])
    sets = [
        of_labels(some[0], truth[:, : len(names)], names) for some, truth in zip((audited, known), truths, strict=True)
    ]
    small = small.with_images(all=sets[0], audited=sets[0], calibration=sets[1])
    own = config.model_copy(update={"queries": config.queries.model_copy(update=queries)})
    small = replace(small, context=replace(small.context, config=own))
    labelled = measure_labels(small.context, small.images, classifiers)
    method = replace(small.method, method=LeftMirrored())
    return small, explain_labels(small.context, labelled, small.networks, [method])


def off_target(found: Meaningfulness | None, model: str = "one") -> OffTarget:
    assert found is not None
    assert found.lost == ()
    summary = found.scored[model].summary
    assert summary.off_target is not None
    return summary.off_target


def test_an_edit_that_moves_another_label_is_not_valid(small: Small) -> None:
    _, labelled = explained(small, classifier(LEFT, RIGHT))
    left, right = (run.second for run in labelled.runs)
    assert off_target(left).change.value == pytest.approx(0, abs=1e-6)
    assert off_target(left).valid.value == 1
    assert right is not None
    # The edit of the left half flips no label "right", and moves the label "left" instead.
    assert right.scored["one"].summary.flip_ratio.value == 0
    assert off_target(right).labels["left"].flips.value == 1
    _, labelled = explained(small, classifier(LEFT, BOTH), labels=np.repeat(halves(12, 1)[1][:, :1], 2, axis=1))
    (together, _) = (run.second for run in labelled.runs)
    assert together is not None
    summary = together.scored["one"].summary
    assert summary.flip_ratio.value == 1
    assert 0 < off_target(together).flips.value == 1 - off_target(together).valid.value
    assert together.ranking is not None
    (rank,) = together.ranking.models
    assert rank.components.validity == off_target(together).valid.value
    for row in together.scored["one"].rows:
        assert row.flipped
        assert row.off_target is not None


def test_labels_that_follow_from_others_may_move(small: Small) -> None:
    _, labelled = explained(small, classifier(LEFT, BOTH), label_follows=("right",))
    for run in labelled.runs:
        assert run.second is not None
        assert run.second.scored["one"].summary.off_target is None


def test_a_classifier_that_only_judges_is_asked_about_the_same_label(small: Small) -> None:
    judge = classifier(LEFT, RIGHT)
    judge.name = "judge"
    asked = ({"name": "judge", "file": "none"},)
    config = AuditConfig.model_validate(small.context.config.model_dump() | {"judge_checkpoints": asked, "queries": {}})
    small = replace(
        small,
        context=replace(small.context, config=config),
        networks=replace(small.networks, judges=(judge,)),
    )
    _, labelled = explained(small, classifier(LEFT, RIGHT))
    left = labelled.runs[0].second
    assert left is not None
    told = next(row for row in left.scored["one"].summary.judges if row.name == "judge")
    assert (told.accuracy, told.agreement) == (1, 1)


def test_one_label_is_an_audit_of_two_classes(small: Small) -> None:
    small, labelled = explained(small, classifier(LEFT, names=("left",)), label_is="both")
    (run,) = labelled.runs
    assert run.second is not None
    two = run.models[0].classifier
    images = run.images
    logits = predict(two, images.audited, 16, small.context.device)
    clean = clean_of_logits(logits, images.audited.row_labels, two.class_names)
    assert images.calibration is not None
    subject = Subject(calibrate(small.context, two, images.calibration), logits, clean)
    method = replace(small.method, method=LeftMirrored())
    expected = explain_models(small.context, images, [subject], small.networks, [method])
    assert run.second.scored["one"].summary == expected.scored["one"].summary
    assert run.second.scored["one"].rows == expected.scored["one"].rows
    assert run.second.ranking == expected.ranking


@pytest.mark.parametrize(
    ("label_is", "sources"), [("present", {"left"}), ("absent", {"no left"}), ("both", {"left", "no left"})]
)
def test_images_with_a_label_or_without_it_are_explained(small: Small, label_is: str, sources: set[str]) -> None:
    _, labelled = explained(small, classifier(LEFT, RIGHT), label_is=label_is)
    found = labelled.runs[0].second
    assert found is not None
    rows = found.scored["one"].rows
    assert {row.source for row in rows} == sources
    assert all({row.source, row.target} == {"left", "no left"} for row in rows)


def test_inversions_are_made_once_for_all_labels(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def counted(context: object, networks: object, audited: AuditSet, indices: Tensor):  # type: ignore[no-untyped-def]
        asked.append(indices.tolist())
        return invert(context, networks, audited, indices)  # type: ignore[arg-type]

    invert = label_explanations.invert_queries
    monkeypatch.setattr(label_explanations, "invert_queries", counted)
    _, labelled = explained(small, classifier(LEFT, RIGHT))
    assert len(asked) == 1
    assert len(set(asked[0])) == len(asked[0])
    left, right = (run.second for run in labelled.runs)
    assert left is not None
    assert right is not None
    assert left.queries is not None
    assert right.queries is not None
    both = set(left.queries.rows.row_ids) & set(right.queries.rows.row_ids)
    assert both
    for row in both:
        one, other = (found.queries.inversion.images[found.queries.rows.row_ids.index(row)] for found in (left, right))
        assert torch.equal(one, other)


def test_a_label_of_too_few_images_is_told_with_its_reason(small: Small) -> None:
    rare = halves(12, 1)[1].copy()
    rare[:, 1] = 0
    rare[3, 1] = 1
    _, labelled = explained(small, classifier(LEFT, RIGHT), labels=rare)
    left, right = labelled.runs
    assert left.second is not None
    assert right.second is None
    (note,) = right.notes
    assert "1 images to explain it on (present) where 2 are needed" in note.why
    assert "labels.right.counterfactuals" in note.paths
    assert labelled.overview.lost == ()


def test_a_model_that_never_sees_a_label_is_told_with_its_reason(small: Small) -> None:
    blind = classifier(LEFT, [0.0, 0, 0, 0])
    blind.name = "blind"
    _, labelled = explained(small, classifier(LEFT, RIGHT), blind)
    right = labelled.runs[1]
    assert right.explained is not None
    assert list(right.explained.missing) == ["blind"]
    assert "assigns 0 of 80 calibration images to class 'right'" in right.explained.missing["blind"].why
    assert [one.failed for one in labelled.overview.models] == [None, None]


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditResult, Path]:
    """The results of a small audit of two labels of a phantom, and the folder that it was written to."""
    folder = tmp_path_factory.mktemp("labels")
    settings = """
[queries]
n = 4

[counterfactual]
steps = 16
shrink_steps = 4
shrink_local = false  # two steps are too few to meet the goal within a mask

[reliance]
n = 12
clusters = 0
interventions = ["side-marker"]

[attribution]
methods = ["grad-cam"]
n = 2
"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audit.metrics.labels.RESAMPLES", 20)
        return run_audit(write_explained_audit(folder, settings), folder / "out"), folder / "out"


def test_an_audit_with_counterfactuals_of_labels(audit: tuple[AuditResult, Path]) -> None:
    result, folder = audit
    assert result.complete, result.not_computed
    assert read_results(folder / "results.json") == result
    assert set(result.label_explanations) == set(TWO_NAMES)
    for name in TWO_NAMES:
        view = result.of_label(name)
        assert view.inversion is not None
        assert {query.label for query in view.queries} == {name}
        sound, misled = view.models
        for model in (sound, misled):
            assert model.counterfactuals is not None
            effects = model.counterfactuals.off_target
            assert effects is not None
            assert effects.valid.value == model.components.validity
            assert (effects.valid.value or 0) <= (model.counterfactuals.flip_ratio.value or 0)
            assert model.index is not None
            assert model.counterfactuals.regions[0].region == "region"
            assert model.reliance is not None
            assert model.attributions[0].examples
            pictures = [
                *(row.counterfactual_image for row in model.queries),
                model.attributions[0].examples[0].map_image,
            ]
            assert all((folder / str(picture)).is_file() for picture in pictures)
        assert sound.counterfactuals is not None
        assert misled.counterfactuals is not None
        assert sound.counterfactuals.off_target is not None
        assert misled.counterfactuals.off_target is not None
        # The misled network takes a marker for a large heart: no edit moves one of them alone.
        assert misled.counterfactuals.off_target.flips.value == misled.counterfactuals.flip_ratio.value != 0
        assert misled.components.validity == 0
        assert (sound.components.validity or 0) > 0.25


def test_the_report_tells_why_labels_are_said_to_be_there(audit: tuple[AuditResult, Path]) -> None:
    result, folder = audit
    page = (folder / "report.html").read_text()
    assert "Why is a label said to be there?" in page
    assert "misled does not keep “heart” apart" in page
    assert "marker: sound" in page
    assert "changes marker as well" in page
    assert page.count('<article class="query"') == sum(len(one.queries) for one in result.label_explanations.values())
    # A label that was left out is told with its reason.
    bare = result.model_copy(deep=True)
    del bare.label_explanations["marker"]
    for model in bare.models:
        model.labels["marker"].counterfactuals, model.labels["marker"].queries = None, []
    bare.not_computed.append(
        NotComputed(what="marker", why="there are too few of them", paths=["labels.marker.counterfactuals"])
    )
    told = report_pages(bare, folder)["report.html"]
    assert re.search(r"<td colspan=\"8\">[^|]*there are too few of them</td>", told)
    assert "marker: sound" in told


def test_a_gate_knows_counterfactuals_of_labels(audit: tuple[AuditResult, Path]) -> None:
    result, _ = audit
    numbers = {
        metric: number.value
        for metric, number in metrics_of(result.models[0]).items()
        if number.value is not None and metric.split(".")[2:3] != ["reliance"]
    }
    assert "labels.heart.counterfactuals.off_target.labels.marker.change" in numbers
    for metric, value in numbers.items():
        low, high = range_of(metric) or (0, 0)
        assert low <= value <= high, metric
    rules = [
        {"metric": "labels.heart.counterfactuals.off_target.flips", "max": 0.5},
        {"metric": "labels.heart.index", "min": 1, "models": ["sound"], "use": "low"},
        {
            "metric": "labels.heart.counterfactuals.regions.region.mass",
            "min": 0.0,
            "models": ["sound"],
            "max_drop": 0.1,
        },
        {"metric": "counterfactuals.l1", "max": 0.5, "models": ["sound"]},
    ]
    outcome = evaluate_gate(result, Policy.model_validate({"rule": rules}), result)
    states = [(check.rule, check.model, check.status) for check in outcome.checks]
    assert states[:2] == [(1, "sound", "pass"), (1, "misled", "fail")]
    assert [status for rule, _, status in states if rule in (2, 3)] == ["pass"] * 3
    assert "see labels.NAME" in outcome.checks[-1].sentence
