"""Audits in MLflow: one run an audit, one nested run a model."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from audit.errors import ResultsError
from audit.results import AuditResult, ModelResult
from audit.results.frames import flat

LONGEST_VALUE = 6000
"""Characters of a parameter's value that MLflow takes."""


def log_to_mlflow(result: AuditResult, files: Sequence[Path], experiment: str, uri: str | None = None) -> str:
    """Log an audit to the MLflow experiment `experiment` at `uri` (None: as MLflow is configured); return the run's id.

    The run has the configuration as parameters and `files` as artifacts; every model has a nested run with its numbers
    as metrics, named by their dotted paths, and its hash and source as tags. Raises ResultsError where MLflow is not
    installed or cannot be reached.
    """
    try:
        import mlflow
        from mlflow.exceptions import MlflowException
    except ImportError:
        raise ResultsError("Logging to MLflow needs it: run `pip install 'spruce-audit[mlflow]'`.") from None
    try:
        if uri is not None:
            mlflow.set_tracking_uri(uri)
        mlflow.set_experiment(experiment)
        with mlflow.start_run(run_name=result.name) as run:
            mlflow.log_params(dict(_parameters(result.config)))
            mlflow.set_tags({"complete": result.complete, "seed": result.seed, "created": result.created})
            for file in files:
                mlflow.log_artifact(str(file))
            for model in result.models:
                with mlflow.start_run(run_name=model.name, nested=True):
                    mlflow.set_tags({"weights_sha256": model.weights_sha256, "source": model.source})
                    if model.failed is not None:
                        mlflow.set_tag("failed", f"{model.failed.stage}: {model.failed.why}")
                    mlflow.log_metrics(_metrics(model))
    except MlflowException as error:
        raise ResultsError(f"MLflow did not take the audit: {error}") from None
    return str(run.info.run_id)


def _parameters(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted keys of the configuration with their values; those of a list by their place."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _parameters(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
            for place, one in enumerate(value):
                yield from _parameters(one, f"{prefix}{key}.{place}.")
        else:
            yield f"{prefix}{key}", str(value)[:LONGEST_VALUE]


def _metrics(model: ModelResult) -> dict[str, float]:
    """Numbers of a model, attacks included, by names of the characters that MLflow allows."""
    found = flat(model.model_dump())
    for table in model.robust.tables():
        for radius, one in table.radii.items():
            found |= {f"{table.path}.{radius}.{name}": value for name, value in flat(one.model_dump()).items()}
    return {
        "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name): float(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
