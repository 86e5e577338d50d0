"""`lateprompt compare`: methods × tasks × shots × seeds under one recipe, resumable, into one table of results."""

from __future__ import annotations

from lateprompt.compare.plan import Plan, RunSpec
from lateprompt.compare.plan_file import load_plan
from lateprompt.compare.runner import compare

__all__ = ["Plan", "RunSpec", "compare", "load_plan"]
