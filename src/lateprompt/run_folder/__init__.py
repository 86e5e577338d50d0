"""A run folder on disk: which files belong to a run, one writer at a time, and replacing an old run by a new one."""

from __future__ import annotations

from lateprompt.run_folder.folder import METRICS_FILE as METRICS_FILE
from lateprompt.run_folder.folder import RunFolder as RunFolder
from lateprompt.run_folder.folder import reading as reading
