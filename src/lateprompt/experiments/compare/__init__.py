"""`lateprompt compare`: methods × tasks × shots × seeds under one recipe, resumable, into one table of results."""

from __future__ import annotations

from lateprompt.experiments.compare.plan import Plan, RunSpec
from lateprompt.experiments.compare.plan_file import load_plan
from lateprompt.experiments.compare.runner import compare

__all__ = ["Plan", "RunSpec", "compare", "load_plan"]
