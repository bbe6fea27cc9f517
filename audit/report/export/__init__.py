"""Results for other tools: CSV and Parquet files, MLflow, model cards."""
