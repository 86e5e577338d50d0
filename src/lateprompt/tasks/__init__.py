"""Text to tokens: tasks with their templates and label words, readers of data, encoding, and few-shot samples."""

from __future__ import annotations

from lateprompt.tasks.encoding import READOUTS, Example, TaskEncoder, check_task
from lateprompt.tasks.readers import Row, read_rows
from lateprompt.tasks.sampling import few_shot
from lateprompt.tasks.task import Task, default_task, load_task, task_names

__all__ = [
    "READOUTS",
    "Example",
    "Row",
    "Task",
    "TaskEncoder",
    "check_task",
    "default_task",
    "few_shot",
    "load_task",
    "read_rows",
    "task_names",
]
