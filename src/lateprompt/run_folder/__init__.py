"""A run folder on disk: which files are ours, one writer at a time, a new run in the place of an old one."""

from __future__ import annotations

from lateprompt.run_folder.folder import METRICS_FILE as METRICS_FILE
from lateprompt.run_folder.folder import RunFolder as RunFolder
from lateprompt.run_folder.folder import reading as reading
