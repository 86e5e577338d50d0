"""Figures on the screen: metrics as tables, or as JSON for other programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lateprompt.predictors.assessment import Assessment

MOST_LABELS = 20
"""Labels that are shown one by one."""


def print_metrics(results: dict[str, dict[str, Any]], *, as_json: bool, single: bool) -> None:
    """Metrics by run or file, as tables or as one JSON object."""
    from lateprompt.utils.console import print_table

    if as_json:
        print(json.dumps(next(iter(results.values())) if single else results))
        return
    for name, values in results.items():
        rows = [(key, figure(value)) for key, value in values.items() if not isinstance(value, dict)]
        calibration = values.get("calibration", {})
        rows += [(f"calibration: {key}", figure(value)) for key, value in calibration.items()]
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
    if "expected_accuracy" in measured:
        print(
            f"chosen: {measured['chosen_method']} at layer {measured['chosen_prompt_layer']}; expect an accuracy of "
            f"{measured['expected_accuracy']:.2f} ({measured['expected_low']:.2f} to {measured['expected_high']:.2f})"
        )
    elif found is not None:
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


def print_search(folder: str) -> None:
    """What a search has tried, as a table, if the run in a folder comes from one."""
    from pathlib import Path

    from lateprompt.run_folder.entries import SEARCH_FILE
    from lateprompt.utils.console import print_table

    path = Path(folder) / SEARCH_FILE
    if not path.is_file():
        return
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    print_table(
        ("method", "layer", "rate", "steps", "score", "seconds", ""),
        [
            (
                line["method"],
                figure(line["prompt_layer"]),
                "-" if line["lr"] is None else f"{line['lr']:.2g}",
                figure(line["steps"]),
                "-" if line["score"] is None else f"{line['score']:.3f}",
                f"{line['seconds']:.1f}",
                "chosen" if line["chosen"] else line["note"] or line["state"],
            )
            for line in lines
        ],
    )


def figure(value: Any) -> str:
    """A value as tables show it."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def print_assessments(found: Mapping[str, Assessment], *, as_json: bool) -> None:
    """Metrics of labelled rows by file, class by class too: as tables, or whole as one JSON object."""
    if as_json:
        results = {path: {**one.metrics(), **one.details()} for path, one in found.items()}
        print(json.dumps(next(iter(results.values())) if len(results) == 1 else results))
        return
    for path, one in found.items():
        print_metrics({path: one.metrics()}, as_json=False, single=True)
        details = one.details()
        if "by_label" in details:
            _print_labels(details["by_label"])
            continue
        _print_classes(details["classes"])
        _print_confusion(**details["confusion"])


def _print_classes(classes: Mapping[str, Mapping[str, float]]) -> None:
    from lateprompt.utils.console import print_table

    shown = list(classes.items())
    if len(shown) > MOST_LABELS:  # rows that are not there say nothing of a label
        shown = sorted((part for part in shown if part[1]["support"]), key=lambda part: part[1]["f1"])[:MOST_LABELS]
        print(f"The {len(shown)} of {len(classes)} labels with the lowest F1 (--json has all):")
    columns = ("precision", "recall", "f1", "support", "predicted")
    print_table(("label", *columns), [(label, *(figure(values[name]) for name in columns)) for label, values in shown])


def _print_confusion(labels: Sequence[str], predictions: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
    from lateprompt.utils.console import print_table, screen

    if len(labels) > MOST_LABELS:
        pairs = [
            (count, label, prediction)
            for label, row in zip(labels, counts, strict=True)
            for prediction, count in zip(predictions, row, strict=True)
            if count and label != prediction
        ]
        pairs = sorted(pairs, key=lambda part: -part[0])[:MOST_LABELS]
        if pairs:
            print("The labels that are confused most:")
            print_table(("label", "predicted as", "rows"), [(a, b, f"{count:,}") for count, a, b in pairs])
        return
    names = list(labels)
    heads = list(predictions)
    widths = [max(len(name), 4) + 3 for name in heads]
    if screen().is_terminal and sum(widths) + max(map(len, names)) + 4 > screen().width:
        heads = [str(number) for number in range(1, len(heads) + 1)]
        names = [f"{number} {name}" for number, name in enumerate(names, 1)]
    cells = [tuple(f"{count:,}" if count else "·" for count in row) for row in counts]
    print("Confusion matrix: a row for each label, a column for each prediction")
    print_table(("", *heads), [(name, *row) for name, row in zip(names, cells, strict=True)])
