"""Values that settings accept, in a module of their own: `--help` shows them without importing torch."""

from __future__ import annotations

GENERATORS = ("fixed", "npg", "mppg", "appg", "atpg", "rpg")
READOUTS = ("masked_lm", "causal_lm", "head")
"""Readouts of labels; `generate`, of answers that are texts, is chosen by the task."""
POOLINGS = ("cls", "mean", "last")
LOSSES = ("vocabulary", "labels")
DTYPES = ("float32", "bfloat16", "float16")
PRECISIONS = ("fp32", "bf16")
BALANCED = "balanced"
"""Class weights in inverse proportion to how often a class occurs."""
DEFAULT_METHOD = "npg"
"""What is trained where nobody has said it (docs/decisions.md, 2026-11-28)."""
READ_ONLY = "read-"
"""Begins the names of methods with a read-only prompt: the text never sees it (docs/read-only.md)."""
