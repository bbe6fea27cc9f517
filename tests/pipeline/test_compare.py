"""Methods compared with the audited one: measured alike on the same images, and unable to spoil the audit."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support_small_audit import Mirrored, Small, by_brightness, findings, measured

from audit.counterfactual.answers import judged
from audit.counterfactual.methods import ChosenMethod
from audit.counterfactual.protocol import CalibratedClassifier, Counterfactuals, InvertedQueries
from audit.errors import DataError
from audit.gate.policy import metrics_of
from audit.gate.ranges import range_of
from audit.pipeline.assemble import assemble, save_all
from audit.pipeline.compare import SHOWN
from audit.pipeline.meaningfulness import Meaningfulness, explain_models
from audit.results import read_results
from audit.storage.files import atomic_write_text


@dataclass(frozen=True)
class Half(Mirrored):
    """Goes half of the way of `Mirrored` and a little further."""

    def explain(self, subject: CalibratedClassifier, *more) -> Counterfactuals:  # type: ignore[no-untyped-def]
        _, queries, targets, _ = more
        assert isinstance(queries, InvertedQueries)
        images = queries.inversion.images
        return judged(subject, queries, targets, images.lerp(1 - images, 0.6))


@dataclass(frozen=True)
class Lost(Mirrored):
    """Fails of one classifier, by an error that is no fault of a classifier."""

    fails: str = "left"

    def explain(self, subject: CalibratedClassifier, *more) -> Counterfactuals:  # type: ignore[no-untyped-def]
        if subject.classifier.name == self.fails:
            raise DataError("There is nothing to take it from.")
        return super().explain(subject, *more)


@pytest.fixture
def compared(small: Small) -> Meaningfulness:
    others = [ChosenMethod("half", "outside 1.0", 0, Half()), ChosenMethod("lost", "outside 1.0", 0, Lost())]
    subjects = [small.subject(by_brightness(name)) for name in ("left", "whole")]
    return explain_models(small.context, small.images, subjects, small.networks, [small.method, *others])


def test_other_methods_are_measured_as_the_audited_one_is(small: Small, compared: Meaningfulness) -> None:
    subjects = [small.subject(by_brightness(name)) for name in ("left", "whole")]
    alone = explain_models(small.context, small.images, subjects, small.networks, [small.method])
    assert compared.ranking == alone.ranking
    half, mirrored = compared.compared["whole", "half"].row, compared.compared["whole", "lost"].row
    audited, place = compared.scored["whole"], compared.ranking.models[1]
    assert mirrored.counterfactuals == audited.summary.model_copy(update={"method": "lost"})
    assert mirrored.components == place.components
    assert mirrored.queries == audited.rows[:SHOWN]
    assert half.counterfactuals.l1.value == pytest.approx(0.6 * audited.summary.l1.value, rel=1e-4)
    assert half.counterfactuals.method == "half"
    assert half.components.sparsity > place.components.sparsity
    assert [one.name for one in half.counterfactuals.judges] == [one.name for one in audited.summary.judges]
    assert small.context.watch.environment(torch.device("cpu")).seconds["counterfactuals by half"] > 0


def test_a_method_that_fails_is_told_and_costs_nothing_else(compared: Meaningfulness) -> None:
    row = compared.compared["left", "lost"].row
    assert row.failed is not None
    assert (row.failed.stage, row.failed.why) == ("counterfactuals", "There is nothing to take it from.")
    assert (row.counterfactuals, row.queries) == (None, [])
    assert (compared.failed, compared.lost) == ({}, ())
    assert compared.compared["left", "half"].row.failed is None


def test_their_numbers_and_pictures_are_in_the_results(small: Small, compared: Meaningfulness, tmp_path: Path) -> None:
    found = findings(small, compared, measured(small, "left"), measured(small, "whole"))
    result = assemble(small.context, found)
    assert result.complete
    save_all(result, found, tmp_path)
    atomic_write_text(tmp_path / "results.json", result.model_dump_json())
    left, whole = read_results(tmp_path / "results.json").models
    assert list(left.methods) == list(whole.methods) == ["half", "lost"]
    assert left.methods["lost"].failed is not None
    for row in whole.methods["half"].queries:
        for path in (row.counterfactual_image, row.semifactual_image, row.edit_image):
            assert path is not None
            assert Image.open(tmp_path / path).size == (16, 16)
    pixels = torch.from_numpy(np.asarray(Image.open(tmp_path / str(row.counterfactual_image))) / 255).float()
    made = compared.compared["whole", "half"].counterfactuals
    assert made is not None
    torch.testing.assert_close(pixels, made.images[SHOWN - 1, 0], atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_gate_may_name_them(small: Small, compared: Meaningfulness) -> None:
    result = assemble(small.context, findings(small, compared, measured(small, "left"), measured(small, "whole")))
    numbers = metrics_of(result.models[1])
    assert result.models[1].methods["half"].counterfactuals is not None
    for name in ("counterfactuals.l1", "counterfactuals.flip_ratio", "components.sparsity"):
        assert numbers[f"methods.half.{name}"].value is not None
        assert range_of(f"methods.half.{name}") == range_of(name) == (0.0, 1.0)
    assert numbers["methods.lost.counterfactuals.l1"] == numbers["counterfactuals.l1"]


def test_an_audit_that_ended_early_compares_nothing(small: Small) -> None:
    subjects = [small.subject(by_brightness("left"))]
    method = ChosenMethod("lost", "outside 1.0", 0, Lost())
    found = explain_models(small.context, small.images, subjects, small.networks, [method, small.method])
    assert found.compared == {}
