"""`export`: results for other tools."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from audit.runtime.terminal import say


class Format(StrEnum):
    """What `export` writes."""

    CSV = "csv"
    PARQUET = "parquet"
    MODEL_CARD = "model-card"
    MLFLOW = "mlflow"


def export(
    results: Annotated[Path, typer.Argument(metavar="RESULTS.json")],
    to: Annotated[Format, typer.Option("--to", help="tables, model cards, or a run in MLflow")],
    out: Annotated[Path | None, typer.Option("--out", help="folder for the files; not for mlflow")] = None,
    experiment: Annotated[str, typer.Option(help="of MLflow")] = "spruce-audit",
    tracking_uri: Annotated[str | None, typer.Option(help="of MLflow; default: as MLflow is configured")] = None,
) -> None:
    """Write results as CSV or Parquet tables or model cards, or log them to MLflow."""
    from audit.errors import ConfigError
    from audit.results import read_results

    result = read_results(results)
    if to is Format.MLFLOW:
        from audit.report.export.tracking import log_to_mlflow

        files = [file for file in (results, results.parent / "report.html") if file.is_file()]
        say(log_to_mlflow(result, files, experiment, tracking_uri))
        return
    if out is None:
        raise ConfigError(f"`--to {to.value}` writes files: name a folder for them with --out.")
    from audit.report.export.files import write_new

    if to is Format.MODEL_CARD:
        from audit.report.export.model_card import card_files

        contents = card_files(result)
    else:
        from audit.report.export.tables import table_files

        contents = table_files(result, "csv" if to is Format.CSV else "parquet")
    for file in write_new(out, contents):
        say(file)
