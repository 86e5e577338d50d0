"""The kinds of tuned models: which one a task needs, and which one a run folder holds."""

from __future__ import annotations

from pathlib import Path

from lateprompt.data import AnyTask, TextTask
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.multi_label import classifier_kind
from lateprompt.predictors.saved_run import TASK_FILE, read_task
from lateprompt.predictors.text_generator import TextWriter
from lateprompt.run_folder.folder import reading


def kind_of(task: AnyTask) -> type[TextClassifier] | type[TextWriter]:
    """The kind of model that learns a task."""
    return TextWriter if isinstance(task, TextTask) else classifier_kind(task)


def load_run(
    folder: str | Path, *, model: str | None = None, device: str | None = None, check_model: bool = True
) -> TextClassifier | TextWriter:
    """Load the classifier or writer of a run folder, as `TunedModel.load` does."""
    with reading(folder):
        kind = kind_of(read_task(Path(folder))) if (Path(folder) / TASK_FILE).is_file() else TextClassifier
        return kind.load(folder, model=model, device=device, check_model=check_model)
