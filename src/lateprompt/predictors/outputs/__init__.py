"""Files of predictions: JSON lines, CSV, TSV and Parquet, written row by row."""

from lateprompt.predictors.outputs.columns import Survey
from lateprompt.predictors.outputs.file import PredictionFile, check_existing
from lateprompt.predictors.outputs.mistakes import write_mistakes

__all__ = ["PredictionFile", "Survey", "check_existing", "write_mistakes"]
