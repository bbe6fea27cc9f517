"""An audit in a local MLflow store, read back by MLflow."""

from pathlib import Path

import pytest
from support_results import example_audit, write_audit

from audit.report.export.tracking import log_to_mlflow

mlflow = pytest.importorskip("mlflow", reason="MLflow (extra 'mlflow') is not installed")


def test_mlflow_reads_back_metrics_parameters_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # newer versions ask for a database otherwise
    audit = example_audit(tmp_path / "audit")
    results = write_audit(tmp_path / "audit", audit)
    run = log_to_mlflow(audit, [results], "audits", (tmp_path / "store").as_uri())
    client = mlflow.MlflowClient()
    parent = client.get_run(run)
    assert parent.data.params["seed"] == str(audit.config["seed"])
    assert [file.path for file in client.list_artifacts(run)] == [results.name]
    nested = client.search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{run}'")
    assert {one.info.run_name for one in nested} == {model.name for model in audit.models}
    for one in nested:
        model = next(model for model in audit.models if model.name == one.info.run_name)
        assert one.data.metrics["index"] == model.index
        assert one.data.metrics["clean.accuracy"] == model.clean.accuracy.value
        assert one.data.metrics["robust.pgd.8/255.robust_accuracy"] == model.robust.pgd["8/255"].robust_accuracy.value
        assert one.data.tags["weights_sha256"] == model.weights_sha256
