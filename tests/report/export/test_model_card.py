"""Model cards: metadata that the hub's own library reads, and a text that a name cannot break."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from support_results import example_audit

from audit.errors import ResultsError
from audit.report.export.model_card import card_files, model_card


def test_the_hubs_library_reads_back_every_number(tmp_path: Path):
    audit = example_audit(tmp_path)
    model = audit.models[0]
    card = ModelCard(model_card(audit, model.name))
    results = {one.metric_name: one.metric_value for one in card.data.eval_results}
    assert results["Accuracy"] == pytest.approx(model.clean.accuracy.value, abs=1e-4)
    assert results["Meaningfulness index"] == pytest.approx(model.index, abs=1e-4)
    assert sum(name.startswith("Accuracy under attack") for name in results) == sum(
        len(table.radii) for table in model.robust.tables()
    )
    assert model.weights_sha256 in card.text


def test_what_may_not_be_believed_is_in_the_text(tmp_path: Path):
    audit = example_audit(tmp_path)
    audit.models[0].veto = "it reads the marker"
    audit.models[0].robust.trusted = False
    text = model_card(audit, audit.models[0].name)
    assert "Its index is 0: it reads the marker" in text
    assert "a trust check speaks against" in text


def test_a_name_cannot_break_metadata_or_markup(tmp_path: Path):
    audit = example_audit(tmp_path)
    audit.models[0].name = 'a: b\n---\n"<script>alert(1)</script> | *x*'
    audit.name = "| <img src=x>"
    card = ModelCard(model_card(audit, audit.models[0].name))
    assert card.data.eval_results
    assert "<img" not in card.text.replace(r"\<img", "")


def test_every_model_has_a_file_of_its_own(tmp_path: Path):
    audit = example_audit(tmp_path)
    for place, name in enumerate(["../x", "a b", "a/b", "."]):
        audit.models[place].name = name
    files = card_files(audit)
    assert len(files) == len(audit.models)
    assert all("/" not in file and file.endswith(".md") and not file.startswith(".") for file in files)


def test_an_unknown_model_is_named_with_those_there_are(tmp_path: Path):
    with pytest.raises(ResultsError, match="no model 'other': name one of 'trades'"):
        model_card(example_audit(tmp_path), "other")
