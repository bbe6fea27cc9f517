"""Tidy tables and the files made of them, from a complete audit on disk."""

from csv import reader
from io import BytesIO, StringIO
from pathlib import Path

import pytest
from support_results import example_audit

from audit.report.export.tables import table_files
from audit.results import AuditResult

pd = pytest.importorskip("pandas", reason="pandas (extra 'export') is not installed")


@pytest.fixture
def audit(tmp_path: Path) -> AuditResult:
    return example_audit(tmp_path)


def test_a_model_is_a_row_with_its_numbers_and_their_intervals(audit: AuditResult):
    table = audit.to_pandas()["models"].set_index("name")
    assert list(table.index) == [model.name for model in audit.models]
    for model in audit.models:
        row = table.loc[model.name]
        assert row["index"] == model.index
        assert (row["index.low"], row["index.high"]) == model.index_interval
        accuracy = model.clean.accuracy
        assert row["clean.accuracy"] == accuracy.value
        assert (row["clean.accuracy.low"], row["clean.accuracy.n"]) == (accuracy.low, accuracy.n)
        assert row["components.localisation"] == model.components.localisation


def test_every_attack_radius_and_every_outcome_is_a_row(audit: AuditResult):
    audit.models[0].robust.pgd["8/255"].outcomes = {"a": None, "b": "pgd"}
    tables = audit.to_pandas()
    rows = {(r.model, r.attack, r.norm, r.eps): r.robust_accuracy for r in tables["attacks"].itertuples()}
    made = {
        (model.name, table.attack, table.norm, one.eps): one
        for model in audit.models
        for table in model.robust.tables()
        for one in table.radii.values()
    }
    assert rows == {key: one.robust_accuracy.value for key, one in made.items()}
    assert len(tables["outcomes"]) == sum(len(one.outcomes) for one in made.values()) == 2


def test_every_counterfactual_and_corruption_is_a_row(audit: AuditResult):
    tables = audit.to_pandas()
    assert len(tables["queries"]) == sum(len(model.queries) for model in audit.models) > 0
    assert list(tables["queries"]["l1"]) == [row.l1 for model in audit.models for row in model.queries]
    asked = [model.robust.corruptions for model in audit.models if model.robust.corruptions is not None]
    assert len(tables["corruptions"]) == sum(len(one.accuracy) for found in asked for one in found.corruptions) > 0


def test_no_table_holds_a_list_or_a_group(audit: AuditResult):
    for name, table in audit.to_pandas().items():
        assert not table.map(lambda value: isinstance(value, (list, dict, tuple))).any(axis=None), name


def test_csv_and_parquet_give_the_same_numbers_back(audit: AuditResult):
    pytest.importorskip("pyarrow", reason="pyarrow (extra 'export') is not installed")
    csv, parquet = table_files(audit, "csv"), table_files(audit, "parquet")
    for name, table in audit.to_pandas().items():
        if not len(table):
            assert f"{name}.csv" not in csv
            continue
        pd.testing.assert_frame_equal(pd.read_parquet(BytesIO(parquet[f"{name}.parquet"])), table)
        numbers = table.select_dtypes("number")
        read = pd.read_csv(BytesIO(csv[f"{name}.csv"]))[numbers.columns]
        pd.testing.assert_frame_equal(read, numbers, check_dtype=False)


@pytest.mark.parametrize("name", ["=HYPERLINK('x')", "+1", "-1", "@SUM(A1)", "\tx", "\n=1", "\uff1d1"])
def test_a_spreadsheet_runs_no_name_as_a_formula(audit: AuditResult, name: str):
    audit.models[0].name = audit.classes[0] = audit.queries[0].id = name
    files = table_files(audit, "csv")
    assert pd.read_csv(BytesIO(files["models.csv"]), dtype=str)["name"][0] == f"'{name}"
    for file in files.values():
        assert name not in {cell for row in reader(StringIO(file.decode(), newline="")) for cell in row}
