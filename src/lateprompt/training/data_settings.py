"""The settings of a run's data. Nothing heavy is imported: the command line shows them in its help."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.validation import Count, OneOf, check_types

LABELS_PER_ROW = ("auto", "one", "several")


@dataclass
class DataSettings:
    """What it is trained and measured on.

    Args:
        train: training rows: JSON lines, CSV, TSV, Parquet, a GLUE TSV, or a Hugging Face dataset id.
        dev: files of rows that choose the best weights (the first) and are measured (all).
        test: files of rows that are scored once, at the end.
        task: name of a task (see lateprompt tasks) or a YAML file; default a plain one from the labels (or targets).
        template: the plain task's template, with {text}, {text_pair} and, by readout, {mask} or {label}, or {target}.
        label_words: the plain task's label words as a mapping, label to word.
        shots: train on so many rows in all, class-proportional; without dev, 1000 of the others become dev rows.
        text_column: the column with the texts, if it is not called text.
        text_pair_column: the column with the second texts of pairs.
        label_column: the column with the labels.
        target_column: the column with the texts that are to be written.
        dev_rows: without dev, so many rows of the training file become dev rows, class-proportional, by the seed.
        labels_per_row: one, or several (a list, or a|b: one task with one head for all labels); auto: several where the
            column is called labels or holds lists.

    Example:
        >>> from lateprompt.training.data_settings import DataSettings
        >>> data = DataSettings("train.csv", dev=["dev.csv"], text_column="review", label_column="stars")
        >>> data.check()
        >>> data.columns
        {'text': 'review', 'text_pair': None, 'label': 'stars', 'target': None}
    """

    train: str
    dev: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    task: str | None = None
    template: str | None = None
    label_words: dict[str, str] | None = None
    shots: Count | None = None
    dev_rows: Count | None = None
    text_column: str | None = None
    text_pair_column: str | None = None
    label_column: str | None = None
    target_column: str | None = None
    labels_per_row: Annotated[str, OneOf(LABELS_PER_ROW)] = "auto"

    @property
    def columns(self) -> dict[str, str | None]:
        """Our field to the column chosen for it, as `read_rows` takes it."""
        found = {name: getattr(self, f"{name}_column") for name in ("text", "text_pair", "label", "target")}
        if self.labels_per_row == "several":
            return {**found, "label": None, "labels": self.label_column or "labels"}
        if self.labels_per_row == "one" and self.target_column is None:
            return {**found, "label": self.label_column or "label"}
        return found

    def check(self) -> None:
        """Raise LatePromptError for a setting that cannot be."""
        check_types(self)
        if self.dev_rows is not None and self.dev:
            raise LatePromptError(
                f"dev_rows {self.dev_rows!r} are drawn where there is no dev file; leave one of them out"
            )
