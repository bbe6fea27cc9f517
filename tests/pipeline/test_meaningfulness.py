"""The second half as a whole: what fails of one model or at one step leaves everything that was known before."""

from dataclasses import dataclass, replace

import pytest
import torch
from support_explained import image_set
from support_small_audit import Mirrored, Small, by_brightness, configured, findings, measured
from torch import Tensor, nn

from audit.counterfactual.methods import ChosenMethod
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals
from audit.errors import ClassifierError
from audit.pipeline.assemble import Findings, assemble
from audit.pipeline.first_look import Look
from audit.pipeline.meaningfulness import Meaningfulness, explain_models
from audit.pipeline.models import Models
from audit.pipeline.robustness import Measured, Robustness
from audit.results import AuditResult, Clean, Failure, why_not_computed


@dataclass(frozen=True)
class MirroredBut(Mirrored):
    """Fails of one classifier."""

    fails: str = "left"

    def explain(self, subject: CalibratedClassifier, *more) -> Counterfactuals:  # type: ignore[no-untyped-def]
        if subject.classifier.name == self.fails:
            raise ValueError("of this one only")
        return super().explain(subject, *more)


@dataclass(frozen=True)
class MirroredTwice(Mirrored):
    """With latent codes, so that there is a way back; fails on it where asked."""

    fails: bool = False

    def explain(self, subject: CalibratedClassifier, *more) -> Counterfactuals:  # type: ignore[no-untyped-def]
        if self.fails and len(more[1].images) < 6:
            raise ValueError("on the way back")
        found = super().explain(subject, *more)
        return replace(found, latents=found.images.flatten(1)[:, None])


def with_metrics(small: Small, **changes: object) -> Small:
    config = small.context.config
    metrics = config.metrics.model_copy(update=changes)
    return replace(small, context=replace(small.context, config=config.model_copy(update={"metrics": metrics})))


def explain(small: Small, *classifiers: nn.Module, method: ChosenMethod | None = None) -> Meaningfulness:
    subjects = [small.subject(one) for one in classifiers]  # type: ignore[arg-type]
    return explain_models(small.context, small.images, subjects, small.networks, [method or small.method])


def test_two_models_are_explained_and_ranked(small: Small) -> None:
    found = explain(small, by_brightness("left"), by_brightness("whole"))
    assert (found.failed, found.lost) == ({}, ())
    assert found.queries is not None
    assert found.ranking is not None
    assert found.inversion is not None
    assert [one.name for one in found.ranking.models] == ["left", "whole"]
    assert found.inversion.mse < 1e-3
    for one in found.explained.values():
        assert torch.equal(one.targets, 1 - found.queries.labels)
        assert one.counterfactuals.flipped.all()


def test_the_way_back_from_a_mirror_ends_at_the_start(small: Small) -> None:
    method = ChosenMethod("twice", "outside 1.0", 0, MirroredTwice())
    found = explain(with_metrics(small, axioms=3), by_brightness("whole"), method=method)
    axioms = found.scored["whole"].summary.axioms
    assert axioms is not None
    assert axioms.reversibility is not None
    assert (axioms.reversibility.n, axioms.returned) == (3, 1.0)
    assert axioms.reversibility.value == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("method", "axioms", "why"),
    [
        (MirroredTwice(), 0, "metrics.axioms is 0"),
        (Mirrored(), 3, "gives no latent codes"),
        (MirroredTwice(fails=True), 3, "ValueError: on the way back"),
    ],
)
def test_where_there_is_no_way_back_it_is_said_why(small: Small, method: Mirrored, axioms: int, why: str) -> None:
    chosen = ChosenMethod("other", "outside 1.0", 0, method)
    found = explain(with_metrics(small, axioms=axioms), by_brightness("whole"), method=chosen)
    assert found.failed == {}
    notes = {path: note.why for note in found.scored["whole"].not_computed for path in note.paths}
    assert why in notes["counterfactuals.axioms.reversibility"]


def test_null_edits_are_inversions_of_inversions(small: Small) -> None:
    once = explain(small, by_brightness("whole")).inversion
    assert once is not None
    assert list(once.composition) == [1]
    again = explain(with_metrics(small, axioms=2, null_edits=3), by_brightness("whole")).inversion
    assert again is not None
    assert {times: change.n for times, change in again.composition.items()} == {1: 6, 3: 2}
    assert 0 < again.composition[3].value < 0.05  # type: ignore[operator]


def test_a_model_that_fails_leaves_the_other_as_it_was(small: Small) -> None:
    alone = explain(small, by_brightness("whole"))
    method = ChosenMethod("but", "outside 1.0", 0, MirroredBut())
    found = explain(small, by_brightness("left"), by_brightness("whole"), method=method)
    assert found.failed["left"].stage == "counterfactuals"
    assert "ValueError: of this one only" in found.failed["left"].why
    assert list(found.scored) == ["whole"]
    assert torch.equal(found.explained["whole"].counterfactuals.images, alone.explained["whole"].counterfactuals.images)


def test_where_all_models_fail_what_was_known_of_them_stays(small: Small) -> None:
    method = ChosenMethod("but", "outside 1.0", 0, MirroredBut())
    found = explain(small, by_brightness("left"), method=method)
    assert list(found.failed) == ["left"]
    assert [one.what for one in found.lost] == ["counterfactuals, index and ranking"]
    assert found.lost[0].why.startswith("No model is left")
    assert found.left_out_by_inversion == {"left": 0}
    assert found.selection is not None
    assert found.ranking is None


def test_a_stage_that_fails_as_a_whole_keeps_the_ones_before(small: Small) -> None:
    classifier = by_brightness("whole")
    subject = small.subject(classifier)
    dark = small.calibration.images()[small.calibration.row_labels == 0]
    images = replace(small.images, calibration=image_set(dark, torch.zeros(len(dark), dtype=torch.int64)))
    found = explain_models(small.context, images, [subject], small.networks, [small.method])
    assert found.failed == {}
    assert "no image of the target class 'bright'" in found.lost[0].why
    assert list(found.explained) == ["whole"]
    assert (found.ranking, found.inversion) == (None, None)


def test_the_results_hold_every_model_and_what_was_found_of_it(small: Small) -> None:
    models = [measured(small, "whole", blind="No gradient.")]
    found = explain(small, models[0].classifier)
    result = assemble(small.context, findings(small, found, *models))
    left, whole = result.models
    assert (left.failed, left.clean) == (
        Failure(stage="loading", why="not there"),
        Clean(accuracy=left.clean.accuracy, recall={"dark": None, "bright": None}, ece=None, n=0),
    )
    assert not result.complete
    assert (whole.rank, whole.failed) == (1, None)
    assert whole.counterfactuals is not None
    assert whole.counterfactuals.untrusted == ["No gradient."]
    assert found.scored["whole"].summary.untrusted == []  # what a stage returned stays as it is
    assert [one.query for one in whole.queries] == [one.id for one in result.queries]
    assert whole.queries[0].counterfactual_image is not None
    assert result.generator_sha256 == "sha"
    assert result.queries_asked == 6


def test_a_second_half_that_ended_early_is_told_with_what_it_found(small: Small) -> None:
    model = measured(small, "left")
    method = ChosenMethod("but", "outside 1.0", 0, MirroredBut())
    result = assemble(small.context, findings(small, explain(small, model.classifier, method=method), model))
    (left, _) = result.models
    assert left.failed is not None
    assert left.failed.stage == "counterfactuals"
    assert (left.index, left.queries, result.queries) == (None, [], [])
    assert left.left_out == {"dark": 0, "bright": 0}
    assert [one.kind for one in result.notices][-1] == "stage-failed"
    assert result.not_computed[-1].what == "counterfactuals, index and ranking"
    assert not result.complete


def test_an_audit_without_a_generator_says_what_it_has_not(small: Small) -> None:
    model = measured(small, "whole")
    found = Findings(
        small.images, Models((model.classifier,), {}), {"whole": Look()}, {}, Robustness((model,), ()), None
    )
    one = small.context.config.classifiers[1]
    context = replace(small.context, config=small.context.config.model_copy(update={"classifiers": (one,)}))
    result = assemble(context, found)
    assert result.complete
    assert [row.what for row in result.not_computed] == ["counterfactuals, index and ranking"]
    assert (result.generator_sha256, result.queries, result.inversion) == (None, [], None)


class Dimmed(nn.Module):
    """Halves the images whose first pixel is not very bright: nearly all of them are dark then."""

    def __init__(self, least: float = 0.836) -> None:
        super().__init__()
        self.least = least

    def forward(self, images: Tensor) -> Tensor:
        return torch.where(images[:, :1, :1, :1] > self.least, images, images / 2)


def asking(small: Small, **queries: object) -> Small:
    config = configured(
        queries={"n": 9, "target": "runner-up"} | queries,
        counterfactual={"min_calibration": 4, "features": "hurdle"},
        classifiers=[{"name": name, "file": "none"} for name in ("weak", "left", "whole")],
    )
    return replace(small, context=replace(small.context, config=config))


def test_a_weak_model_is_explained_on_its_own_images_and_leaves_the_others_as_they_were(small: Small) -> None:
    small = asking(small)
    good = [by_brightness("left"), by_brightness("whole")]
    weak = by_brightness("weak", Dimmed())
    alone, found = explain(small, *good), explain(small, weak, *good)
    assert (found.failed, found.lost, found.unpaired) == ({}, (), {"weak"})
    for name in ("left", "whole"):
        assert torch.equal(found.asked[name].positions, alone.asked[name].positions)
        assert torch.equal(found.explained[name].counterfactuals.images, alone.explained[name].counterfactuals.images)
    own = found.asked["weak"]
    assert (found.explained["weak"].sources == own.labels).all()
    assert found.queries is not None
    assert set(own.positions.tolist()) <= set(found.queries.positions.tolist())
    assert len(found.explained["weak"].targets) == len(own.positions) >= 2
    assert found.ranking is not None
    paired = {(one.a, one.b): one.paired for one in found.ranking.comparisons}
    assert paired.pop(("left", "whole")) is True
    assert not any(paired.values())
    subject = small.subject(weak)
    rows = [Measured(weak, subject.clean, subject.logits), *(measured(small, name) for name in ("left", "whole"))]
    result = assemble(small.context, findings(small, found, *rows))
    assert [one.unpaired for one in result.models] == [True, False, False]
    assert [row.query for row in result.models[0].queries] == [f"{i}" for i in own.positions.tolist()]
    assert [row.query for row in result.models[1].queries] == [row.query for row in result.models[2].queries]
    assert {row.query for one in result.models for row in one.queries} == {one.id for one in result.queries}
    assert AuditResult.model_validate_json(result.model_dump_json()) == result
    assert result.complete


def test_a_model_that_knows_one_class_only_fails_and_the_others_go_on(small: Small) -> None:
    small = asking(small)
    alone = explain(small, by_brightness("whole"))
    never = by_brightness("never", Dimmed(least=2.0))
    with pytest.raises(ClassifierError, match=r"'never' assigns 0 of 40 calibration images to class 'bright'"):
        small.subject(never)
    known = small.subject(by_brightness("never"))
    blind = replace(known, logits=torch.eye(2)[1 - small.images.audited.row_labels])
    subjects = [blind, small.subject(by_brightness("whole"))]
    found = explain_models(small.context, small.images, subjects, small.networks, [small.method])
    assert list(found.failed) == ["never"]
    assert found.failed["never"].stage == "query images"
    assert found.lost == ()
    assert (found.unpaired, list(found.scored)) == (frozenset(), ["whole"])
    assert found.ranking == alone.ranking


def test_misclassified_images_are_led_to_their_own_class(small: Small) -> None:
    small = asking(small, pick="wrong", target="bright")
    weak, whole = by_brightness("weak", Dimmed()), by_brightness("whole")
    found = explain(small, weak, whole)
    assert (found.failed, found.lost) == ({}, ())
    assert list(found.explained) == ["weak"]
    one = found.explained["weak"]
    assert one.wrong.all()
    assert torch.equal(one.targets, one.queries.labels)
    assert found.selection is not None
    assert "'whole' misclassifies none" in found.selection.nothing["whole"]
    subject = small.subject(weak)
    rows = [Measured(weak, subject.clean, subject.logits), measured(small, "whole")]
    result = assemble(small.context, findings(small, found, *rows))
    mine, other = result.models[0], result.models[2]
    assert {(row.source, row.target, row.wrong) for row in mine.queries} == {("dark", "bright", True)}
    assert (other.failed, other.counterfactuals) == (None, None)
    assert "misclassifies none" in str(why_not_computed("index", other, result))
    assert explain(small, whole).lost[0].why.startswith("There is nothing to explain: Classifier 'whole' misclassifies")


def test_with_all_images_each_is_asked_in_its_way(small: Small) -> None:
    found = explain(asking(small, pick="all"), by_brightness("weak", Dimmed()), by_brightness("whole"))
    weak, whole = (found.explained[name] for name in ("weak", "whole"))
    assert found.unpaired == frozenset()
    assert weak.queries is whole.queries
    assert torch.equal(weak.wrong, weak.targets == weak.queries.labels)
    assert 0 < int(weak.wrong.sum()) < len(weak.wrong)
    assert not whole.wrong.any()
    assert any("equally many edits" in one.why for one in found.notes)
