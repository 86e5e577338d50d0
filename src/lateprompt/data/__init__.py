"""From text to token ids: tasks with their templates and label words, reading files, encoding, few-shot samples."""

from __future__ import annotations

from lateprompt.data.encoding import READOUTS, Example, TaskEncoder, check_task
from lateprompt.data.generation_task import TextTask, plain_text_task
from lateprompt.data.labels import label_name
from lateprompt.data.rows import BadRow, Row, iter_rows, read_rows
from lateprompt.data.sampling import few_shot
from lateprompt.data.target_encoding import TargetEncoder
from lateprompt.data.task import MultiLabelTask, Task, default_task, multi_label_task
from lateprompt.data.task_library import AnyTask, load_label_task, load_task, task_from_dict, task_names

__all__ = [
    "READOUTS",
    "AnyTask",
    "BadRow",
    "Example",
    "MultiLabelTask",
    "Row",
    "TargetEncoder",
    "Task",
    "TaskEncoder",
    "TextTask",
    "check_task",
    "default_task",
    "few_shot",
    "iter_rows",
    "label_name",
    "load_label_task",
    "load_task",
    "multi_label_task",
    "plain_text_task",
    "read_rows",
    "task_from_dict",
    "task_names",
]
