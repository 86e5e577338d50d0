"""The kinds of models of a run: which one a task and a method need, and which one a run folder holds."""

from __future__ import annotations

from pathlib import Path

from lateprompt.data import AnyTask, TextTask
from lateprompt.methods import parse_method
from lateprompt.methods.linear import EMBEDDING_LR, TFIDF
from lateprompt.predictors.classifier import TextClassifier
from lateprompt.predictors.linear.classifier import EmbeddingClassifier, LinearClassifier, TfidfClassifier
from lateprompt.predictors.multi_label import classifier_kind
from lateprompt.predictors.saved_run import RUN_FILE, TASK_FILE, model_settings_in, read_run, read_task
from lateprompt.predictors.text_generator import TextWriter
from lateprompt.run_folder.folder import reading

Classifier = TextClassifier | LinearClassifier
"""What answers with labels."""
Tuned = Classifier | TextWriter
"""The model of a run."""
_LINEAR: dict[str, type[LinearClassifier]] = {TFIDF: TfidfClassifier, EMBEDDING_LR: EmbeddingClassifier}


def kind_of(task: AnyTask, method: str = "npg") -> type[TextClassifier] | type[TextWriter] | type[LinearClassifier]:
    """The kind of model that learns a task by a method."""
    linear = _LINEAR.get(parse_method(method)[0].method.name)
    if linear is not None:
        return linear
    return adapter_kind_of(task)


def adapter_kind_of(task: AnyTask) -> type[TextClassifier] | type[TextWriter]:
    """The kind of model that learns a task by an adapter."""
    return TextWriter if isinstance(task, TextTask) else classifier_kind(task)


def load_run(
    folder: str | Path, *, model: str | None = None, device: str | None = None, check_model: bool = True
) -> Tuned:
    """Load the classifier or writer of a run folder, as `TunedModel.load` does."""
    with reading(folder):
        kind = _kind_in(Path(folder))
        return kind.load(folder, model=model, device=device, check_model=check_model)


def load_classifier(
    folder: str | Path, *, model: str | None = None, device: str | None = None, check_model: bool = True
) -> Classifier:
    """Load the classifier of a run folder, of one label a text or several, as `TunedModel.load` does.

    Raises:
        LatePromptError: as there; a run that writes texts.
    """
    with reading(folder):
        kind = _kind_in(Path(folder))
        chosen = TextClassifier if issubclass(kind, TextWriter) else kind  # which says that it is no classifier
        return chosen.load(folder, model=model, device=device, check_model=check_model)


def _kind_in(folder: Path) -> type[TextClassifier] | type[TextWriter] | type[LinearClassifier]:
    """The kind of a run folder's model; what is missing or broken, loading it will say."""
    if not (folder / TASK_FILE).is_file() or not (folder / RUN_FILE).is_file():
        return TextClassifier
    return kind_of(read_task(folder), model_settings_in(read_run(folder), folder).method)
