"""Tables of an audit as CSV or Parquet files, one file a table."""

from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

from audit.errors import ResultsError
from audit.results import AuditResult

if TYPE_CHECKING:
    import pandas as pd

FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A spreadsheet takes a cell that begins so for a formula and runs it (CWE-1236); the last are signs of full width."""


def table_files(result: AuditResult, kind: Literal["csv", "parquet"]) -> dict[str, bytes]:
    """Return the contents of a file for every table of `AuditResult.to_pandas` that has rows, by the file's name.

    In CSV files a text that a spreadsheet would run as a formula has an apostrophe before it. Raises ResultsError where
    pandas, or for Parquet pyarrow, is not installed.
    """
    tables = {name: table for name, table in result.to_pandas().items() if len(table)}
    if kind == "csv":
        return {f"{name}.csv": _defused(table).to_csv(index=False).encode() for name, table in tables.items()}
    try:
        return {f"{name}.parquet": _parquet(table) for name, table in tables.items()}
    except ImportError:
        raise ResultsError("Parquet files need pyarrow: run `pip install 'spruce-audit[export]'`.") from None


def _parquet(table: "pd.DataFrame") -> bytes:
    file = BytesIO()
    table.to_parquet(file, index=False)
    return file.getvalue()


def _defused(table: "pd.DataFrame") -> "pd.DataFrame":
    def safe(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA_STARTS) else value

    return table.rename(columns=safe).map(safe)
