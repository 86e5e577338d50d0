"""Values that settings accept, in a module of their own: `--help` shows them without importing torch."""

from __future__ import annotations

GENERATORS = ("fixed", "npg", "mppg", "appg", "atpg", "rpg")
READOUTS = ("mask", "label", "head")
"""Readouts of labels. The readout `text` goes with tasks whose answers are texts."""
POOLINGS = ("cls", "mean", "last")
LOSSES = ("vocabulary", "labels")
DTYPES = ("float32", "bfloat16", "float16")
PRECISIONS = ("fp32", "bf16")
