"""Files of predictions: JSON lines, CSV, TSV and Parquet, written row by row."""

from lateprompt.predictors.outputs.columns import Survey
from lateprompt.predictors.outputs.file import PredictionFile, check_existing

__all__ = ["PredictionFile", "Survey", "check_existing"]
