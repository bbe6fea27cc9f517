"""An audit of images with several labels: end to end, and against the audit of two classes where there is one label."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from support_labels import NAMES, write_audit_files
from torch import Tensor, nn

from audit.classifiers.classifier import Classifier
from audit.config import AuditConfig
from audit.data.audit_set import AuditSet
from audit.errors import ConfigError
from audit.gate.evaluate import evaluate_gate
from audit.gate.policy import Policy, doubts_of, metrics_of
from audit.pipeline.context import Context
from audit.pipeline.images import Images, read_images
from audit.pipeline.labels import Labelled, label_counts, label_rows, label_summary, measure_labels
from audit.pipeline.robustness import measure_models
from audit.pipeline.runner import run_audit
from audit.results import AuditResult, DataRead, read_results
from audit.runtime.environment import Stopwatch


class Means(nn.Module):
    """One logit for each part of the image, from its mean; with `two_classes` of the first part alone, as two."""

    def __init__(self, parts: int, two_classes: bool = False) -> None:
        super().__init__()
        self.two_classes = two_classes
        self.pool = nn.AdaptiveAvgPool2d((1, parts))
        self.head = nn.Linear(parts, 2 if two_classes else parts)
        with torch.no_grad():
            weight = 30 * torch.eye(parts)
            self.head.weight.copy_(torch.cat([-weight[:1] / 2, weight[:1] / 2]) if two_classes else weight)
            self.head.bias.copy_(torch.tensor([7.5, -7.5]) if two_classes else torch.full((parts,), -15.0))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.pool(images).flatten(1))


def _classifier(name: str, parts: int, classes: tuple[str, ...], two_classes: bool = False) -> Classifier:
    network = Means(parts, two_classes).eval()
    return Classifier(network, name=name, class_names=classes, input_shape=(1, 8, 8))


def _data(parts: int, n: int = 40, unknown: bool = False) -> tuple[Tensor, np.ndarray]:
    """Images whose parts are dark or bright, with noise, and whether they are bright."""
    rng = torch.Generator().manual_seed(3)
    bright = torch.rand(n, parts, generator=rng) < 0.4
    shade = 0.5 + 0.05 * (2.0 * bright - 1) + 0.06 * torch.randn(n, parts, generator=rng)
    images = shade[:, None, None, :].repeat_interleave(8 // parts, dim=3).expand(n, 1, 8, 8)
    labels = bright.long().numpy()
    if unknown:
        labels[::7, 0] = -1
    return images.clamp(0, 1), labels


def _set(images: Tensor, labels: np.ndarray, names: tuple[str, ...]) -> AuditSet:
    stored = images[:, 0].numpy()
    ids = tuple(f"{i:03d}" for i in range(len(stored)))
    return AuditSet(stored.__getitem__, labels, names, ids, np.array(["test"] * len(stored)), (1, 8, 8))


def _images(audited: AuditSet) -> Images:
    read = DataRead(audit_split="test", calibration_split=None, splits={}, white=None)
    return Images(audited, audited, "0" * 64, None, None, read, ())


def _context(**robustness: object) -> Context:
    settings: Mapping[str, object] = {"n": 24, "eps": ["4/255", "12/255"], "steps": 4, "trust": {"n": 8}, **robustness}
    config = AuditConfig.model_validate(
        {"data": {"path": "none"}, "classifiers": [{"name": "one", "file": "none"}], "robustness": settings}
    )
    return Context(config, Path.cwd(), torch.device("cpu"), None, Stopwatch())


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.metrics.labels.RESAMPLES", 20)


def _measured(
    context: Context, parts: int, names: tuple[str, ...], order: list[int], unknown: bool = False
) -> Labelled:
    images, labels = _data(parts, unknown=unknown)
    turned = tuple(names[i] for i in order)
    base = _classifier("one", parts, names)
    classifier = Classifier(base.network.network, name="one", class_names=turned, input_shape=(1, 8, 8), order=order)
    return measure_labels(context, _images(_set(images, labels[:, order], turned)), [classifier])


def test_one_label_is_an_audit_of_two_classes() -> None:
    context = _context(attacks=["pgd", "ensemble"], ensemble={"apgd_steps": 5, "fab_steps": 5, "square_queries": 20})
    images, labels = _data(1)
    two = _classifier("one", 1, ("no bright", "bright"), two_classes=True)
    (expected,) = measure_models(context, _images(_set(images, labels[:, 0], two.class_names)), [two]).models
    labelled = _measured(context, 1, ("bright",), [0])
    row = label_rows(labelled, "one")["bright"]
    assert row.clean.accuracy == expected.clean.accuracy
    assert row.clean.recall == expected.clean.recall
    assert row.clean.ece == pytest.approx(expected.clean.ece, abs=1e-5)
    assert 0 < (row.robust.pgd["12/255"].robust_accuracy.value or 0) < (row.clean.accuracy.value or 0)
    for table, theirs in zip(row.robust.tables(), expected.robust.tables(), strict=True):
        for radius, attack in table.radii.items():
            assert attack.outcomes == theirs.radii[radius].outcomes
            assert attack.recall == theirs.radii[radius].recall
    summary = label_summary(context, labelled, "one")
    assert summary is not None
    assert summary.exact == row.clean.accuracy
    assert summary.any_label["pgd.12/255"].right == row.robust.pgd["12/255"].robust_accuracy
    assert summary.joint == {}


@pytest.mark.parametrize("order", [[1, 0], [0, 1]])
@pytest.mark.parametrize("unknown", [False, True])
def test_the_order_of_labels_changes_no_number(order: list[int], unknown: bool) -> None:
    context, names = _context(trust=False), ("left", "right")
    found, expected = (_measured(context, 2, names, one, unknown) for one in (order, [0, 1]))
    rows, wanted = label_rows(found, "one"), label_rows(expected, "one")
    assert list(rows) == [names[i] for i in order]
    for name in names:
        assert rows[name].model_dump() == wanted[name].model_dump()
    mine, theirs = (label_summary(context, one, "one") for one in (found, expected))
    assert mine is not None
    assert theirs is not None
    assert mine.any_label == theirs.any_label
    assert mine.exact == theirs.exact
    for radius, joint in mine.joint.items():
        assert joint.kept.value == pytest.approx(theirs.joint[radius].kept.value)
        assert joint.by_label == theirs.joint[radius].by_label


def test_labels_are_attacked_on_the_same_images_and_unknown_ones_are_left_out() -> None:
    context = _context(trust=False)
    labelled = _measured(context, 2, ("left", "right"), [0, 1], unknown=True)
    left, right = (run.models[0].robust.pgd["12/255"] for run in labelled.runs)
    assert set(left.outcomes) < set(right.outcomes)
    assert len(right.outcomes) == 24
    rows = label_rows(labelled, "one")
    assert (rows["left"].n, rows["right"].n) == (34, 40)
    counts = label_counts(labelled.images.audited)
    assert counts.unknown == {"left": 6, "right": 0}
    assert counts.together[0][0] == counts.positives["left"] == rows["left"].positives


def test_any_label_falls_at_least_as_often_as_each_and_as_one_perturbation_achieves() -> None:
    context = _context(trust=False)
    labelled = _measured(context, 2, ("left", "right"), [0, 1])
    summary = label_summary(context, labelled, "one")
    assert summary is not None
    for radius in ("4/255", "12/255"):
        found = summary.any_label[f"pgd.{radius}"]
        for run in labelled.runs:
            kept = run.models[0].robust.pgd[radius].robust_accuracy
            assert (found.right.value or 0) <= (kept.value or 0)
            assert (kept.value or 0) <= (summary.joint[radius].by_label[run.name].value or 0)
        assert (summary.joint[radius].kept.value or 0) <= summary.joint[radius].before


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ("[robustness]\nlabel_weights = { mass = 1 }\n", "'mass', which is no label: opacity, large heart, marker"),
        ("[robustness]\nlabel_weights = { marker = 0 }\n", "leaves no label to attack"),
        ("[queries]\ntarget = 'marker'\n[robustness]\n", "'queries.target' is for images of one class"),
        ("[queries]\nlabels = ['mass']\n[robustness]\n", "'mass', which is no label: opacity, large heart, marker"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, settings: str, match: str) -> None:
    file = write_audit_files(tmp_path, 12)
    file.write_text(file.read_text().replace("[robustness]\n", settings, 1))
    with pytest.raises(ConfigError, match=match):
        run_audit(file)


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditResult, Path]:
    """The results of a small audit of phantom images with three labels, and the folder that it was written to."""
    folder = tmp_path_factory.mktemp("labels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("audit.metrics.labels.RESAMPLES", 20)
        return run_audit(write_audit_files(folder), folder / "out"), folder / "out"


def test_an_audit_from_files_to_report(audit: tuple[AuditResult, Path]) -> None:
    result, folder = audit
    assert result.complete
    assert result.classes == list(NAMES)
    assert read_results(folder / "results.json").models[0].labels.keys() == set(NAMES)
    good, poor = result.models
    assert good.label_summary is not None
    assert poor.label_summary is not None
    assert (good.label_summary.auroc.value or 0) > (poor.label_summary.auroc.value or 0) > 0.5
    assert good.clean.accuracy.value is None
    assert good.reliance is None
    assert "reliance" in {path for note in good.not_computed for path in note.paths}
    assert any(row.metric == "labels.marker.robust.pgd.8/255" and row.a == "good" for row in result.differences)
    page = (folder / "report.html").read_text()
    assert "some label falls on" in page
    assert "Label by label" in page
    assert "Clean and robust accuracy" not in page
    assert "answers one class" not in page
    pictures = [one.image for label in good.labels.values() for one in label.robust.examples]
    assert pictures
    assert all((folder / picture).is_file() for picture in pictures)


def test_a_gate_knows_labels(audit: tuple[AuditResult, Path]) -> None:
    result, _ = audit
    good = result.models[0]
    numbers = metrics_of(good)
    assert numbers["labels.marker.auroc"].value == good.labels["marker"].auroc.value
    rules = [
        {"metric": "labels.marker.auroc", "min": 0.6, "models": ["good"]},
        {"metric": "label_summary.exact", "min": 0.999},
        {"metric": "labels.marker.robust.pgd.8/255", "min": 0.0, "models": ["good"], "max_drop": 0.1},
        {"metric": "clean.accuracy", "min": 0.5, "models": ["good"]},
    ]
    outcome = evaluate_gate(result, Policy.model_validate({"rule": rules}), result)
    states = [(check.rule, check.status) for check in outcome.checks]
    assert states[:3] == [(1, "pass"), (2, "fail"), (2, "fail")]
    assert "see labels.NAME" in outcome.checks[-1].sentence
    with pytest.raises(ValueError, match=r"labels\.marker\.auroc"):
        Policy.model_validate({"rule": [{"metric": "labels.marker.auroc", "min": 60}]})


def test_a_gate_believes_no_label_whose_attack_failed_a_check(audit: tuple[AuditResult, Path]) -> None:
    result, _ = audit
    model = result.models[0].model_copy(deep=True)
    model.labels["marker"].robust.pgd["8/255"].untrusted.append("nothing was seen")
    for metric in (
        "labels.marker.robust.pgd.8/255",
        "label_summary.any_label.pgd.8/255.falls",
        "label_summary.joint.8/255.kept",
    ):
        assert doubts_of(model, metric).untrusted == ("nothing was seen",)
    assert doubts_of(model, "labels.opacity.robust.pgd.8/255").untrusted != ("nothing was seen",)
    assert doubts_of(model, "labels.marker.auroc").untrusted == ()


def test_single_label_audits_take_no_label_weights(tmp_path: Path) -> None:
    config = AuditConfig.model_validate(
        {
            "data": {"path": "phantom", "phantom": {"calibration": 30, "audit": 6}},
            "classifiers": [{"name": "plain", "checkpoint": "shipped:plain"}],
            "robustness": {"label_weights": {"healthy": 1}},
        }
    )
    with pytest.raises(ConfigError, match="for images of several labels"):
        read_images(Context(config, tmp_path, torch.device("cpu"), None, Stopwatch()))
