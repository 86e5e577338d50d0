"""Figures on the screen: metrics as tables, or as JSON for other programs."""

from __future__ import annotations

import json
from typing import Any


def print_metrics(results: dict[str, dict[str, Any]], *, as_json: bool, single: bool) -> None:
    """Metrics by run or file, as tables or as one JSON object."""
    from lateprompt.utils.console import print_table

    if as_json:
        print(json.dumps(next(iter(results.values())) if single else results))
        return
    for name, values in results.items():
        rows = [(key, figure(value)) for key, value in values.items() if not isinstance(value, dict)]
        for kind in ("dev_sets", "test"):
            for path, part in values.get(kind, {}).items():
                rows += [(f"{kind.removesuffix('_sets')} {path}: {key}", figure(value)) for key, value in part.items()]
        print_table((name, "value"), rows)


def figure(value: Any) -> str:
    """A value as tables show it."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
