"""Files of predictions: JSON lines, CSV, TSV and Parquet, written row by row."""

from lateprompt.outputs.columns import Survey
from lateprompt.outputs.file import PredictionFile, check_existing

__all__ = ["PredictionFile", "Survey", "check_existing"]
