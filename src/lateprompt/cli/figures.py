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


def print_expected(measured: dict[str, Any]) -> None:
    """Say how a run without dev rows was measured."""
    found = measured.get("cross_validation")
    if found is not None:
        low, high = found["accuracy_interval"]
        print(
            f"no dev rows: trained on all {measured['train_rows']:,} rows, to the end; expect an accuracy of "
            f"{found['accuracy']:.2f} ({low:.2f} to {high:.2f}), by cross-validation in {found['folds']} folds, "
            f"{found['seconds']:.1f} s"
        )
    elif not measured.get("dev_rows"):
        print(
            f"no dev rows: trained on all {measured['train_rows']:,} rows, to the end, and not measured; "
            "give --dev, --dev-rows or --folds to know what to expect"
        )


def figure(value: Any) -> str:
    """A value as tables show it."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
