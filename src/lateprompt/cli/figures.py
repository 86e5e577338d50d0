"""Figures on the screen: metrics as tables, or as JSON for other programs."""

from __future__ import annotations

import json
from typing import Any

MOST_LABELS = 20
"""Labels that a table on the screen shows."""


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
                rows += [
                    (f"{kind.removesuffix('_sets')} {path}: {key}", figure(value))
                    for key, value in part.items()
                    if not isinstance(value, dict)
                ]
        print_table((name, "value"), rows)
        if values.get("by_label"):
            _print_labels(values["by_label"])


def _print_labels(by_label: dict[str, dict[str, Any]]) -> None:
    """Each label's own figures; of many labels those of the most frequent ones."""
    from lateprompt.utils.console import print_table

    shown = list(by_label.items())[:MOST_LABELS]
    names = list(shown[0][1])
    print_table(("label", *names), [(label, *(figure(own[name]) for name in names)) for label, own in shown])
    if len(by_label) > len(shown):
        print(f"the {len(shown)} most frequent of {len(by_label):,} labels; --json has all")


def print_expected(measured: dict[str, Any]) -> None:
    """Say how a run without dev rows was measured."""
    found = measured.get("cross_validation")
    if found is not None:
        if "accuracy_interval" in found:
            low, high = found["accuracy_interval"]
            expected = f"an accuracy of {found['accuracy']:.2f} ({low:.2f} to {high:.2f})"
        else:  # a multi-label task
            expected = f"a micro F1 of {found['micro_f1']:.2f}"
        print(
            f"no dev rows: trained on all {measured['train_rows']:,} rows, to the end; expect {expected}, by "
            f"cross-validation in {found['folds']} folds, {found['seconds']:.1f} s"
        )
    elif not measured.get("dev_rows"):
        print(
            f"no dev rows: trained on all {measured['train_rows']:,} rows, to the end, and not measured; "
            "give --dev, --dev-rows or --folds to know what to expect"
        )


def figure(value: Any) -> str:
    """A value as tables show it."""
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
