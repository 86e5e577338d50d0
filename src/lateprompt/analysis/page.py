"""The page of an analysis, with its figures and tables: the report's own machinery on other results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lateprompt.analysis.folder import FIGURES, PAGE_FILE, AnalysisFolder
from lateprompt.utils.errors import LatePromptError
from lateprompt.utils.files import write_atomically, write_text

if TYPE_CHECKING:
    import pandas as pd

    from lateprompt.analysis.run_prompts import Example, Plane
    from lateprompt.experiments.report.blocks import Block, DataTable, Section
    from lateprompt.experiments.report.figures import Chart

KINDS = ("svg", "png")
TITLES = {
    "layers": "Score by prompt layer",
    "influence": "Propagation distance against influence",
    "information": "Information about the label by layer",
    "instances": "Instance dependence of prompts",
}

Written = tuple[list["DataTable"], list[Path]]
"""The tables for the terminal, and the files that were written: the page, and its figures."""


def write_study(folder: AnalysisFolder) -> Written:
    """Write the page and the figures of a study by layer from its results.

    Raises:
        LatePromptError: matplotlib or pandas is missing, or there are no results.
    """
    _check_installed()
    kind = folder.facts["analysis"]
    if not folder.results:
        raise LatePromptError(f"output {str(folder.path)!r} has no results")
    make = {"layers": _layers, "influence": _influence, "information": _information}[kind]
    return _write(folder, make(folder.results))


def write_instances(folder: AnalysisFolder, plane: Plane, examples: Sequence[Example]) -> Written:
    """Write the page and the picture of a run's prompts; the page shows texts of the user's own rows.

    Raises:
        LatePromptError: matplotlib or pandas is missing.
    """
    _check_installed()
    import pandas as pd

    from lateprompt.experiments.report.blocks import DataTable, Figure, Section
    from lateprompt.experiments.report.figures import scatter_chart

    points = pd.DataFrame({"x": plane.places[:, 0], "y": plane.places[:, 1], "group": plane.labels})
    first, second = (f"{100 * share:.0f} % of the variance" for share in plane.shares)
    chart = scatter_chart(
        points,
        name="prompts in two dimensions",
        title="Prompts of the rows in the plane of their two principal components, by class",
        x_label=f"first component, {first}",
        y_label=f"second component, {second}",
        width=620,
    )
    results = folder.results
    table = DataTable(
        "Where the variance lies",
        (
            "Vectors",
            "Differ by instance",
            "Explained by class",
            "The same, adjusted",
            "Nearest of same class",
            "By chance",
        ),
        [
            (
                row["vectors"],
                _percent(row["instance_share"]),
                _percent(row["class_share"]),
                _percent(row["adjusted_class_share"]),
                _percent(row["neighbours"]),
                _percent(row["neighbours_by_chance"]),
            )
            for row in results
        ],
        "numbers",
    )
    sections = [
        Section("plane", "The prompts in two dimensions", [Figure("Each point is the prompt of one row.", chart)]),
        Section("variance", "Between instances and classes", [table, _note(_INSTANCES_NOTE)]),
    ]
    if examples:
        blocks: list[Block] = [
            DataTable(
                f"{example.label}: {example.text}",
                ("Similarity", "Label", "Training text"),
                [(f"{value:.2f}", label, text) for text, label, value in example.neighbours],
            )
            for example in examples
        ]
        sections.append(Section("neighbours", "Nearest training texts by prompt", blocks))
    return [table], _write(folder, sections)[1]


_INSTANCES_NOTE = (
    "Differ by instance: variance of the vectors as a share of their mean squared length (0: all rows have the same "
    "prompt). Explained by class: share of that variance between the classes' means; adjusted for what random classes "
    "would explain. Nearest of same class: share of rows whose nearest other row by cosine similarity has the same "
    "label. Trunk states are what the generator reads, at the prompt layer."
)


def _check_installed() -> None:
    try:
        from lateprompt.experiments.report import page  # noqa: F401
    except ImportError as error:
        if error.name not in ("matplotlib", "pandas", "scipy"):
            raise
        raise LatePromptError(
            "the figures of an analysis need matplotlib and pandas: pip install 'lateprompt[experiments]'"
        ) from None


def _write(folder: AnalysisFolder, sections: Sequence[Section]) -> Written:
    from lateprompt.experiments.report.blocks import DataTable, charts
    from lateprompt.experiments.report.page import whole_page

    first = folder.results[0]
    own = [f"{first['num_layers']} layers", f"task {first['task']}", f"{first['train_rows']:,} training rows"]
    if seeds := {row["seed"] for row in folder.results if "seed" in row}:
        own.append(f"{len(seeds)} seed{'s' * (len(seeds) != 1)}")
    if model := folder.facts["asked"].get("model"):
        own.insert(0, re.split(r"[/\\]", str(model).rstrip("/\\"))[-1])
    page = folder.path / PAGE_FILE
    write_text(page, whole_page(TITLES[folder.facts["analysis"]], " · ".join(own), sections))
    files = [page]
    place = folder.path / FIGURES
    place.mkdir(exist_ok=True)
    for chart in (chart for section in sections for chart in charts(section.blocks)):
        name = re.sub(r"[^\w.+-]+", "-", chart.name).strip("-.")[:120]
        for kind in KINDS:
            content, file = chart.file(kind), place / f"{name}.{kind}"
            write_atomically(file, lambda temporary, content=content: temporary.write_bytes(content))  # type: ignore[misc]
            files.append(file)
    return [block for section in sections for block in section.blocks if isinstance(block, DataTable)], files


# -- sections --------------------------------------------------------------------------------------------------------


def _layers(results: Sequence[Mapping[str, Any]]) -> list[Section]:
    from lateprompt.experiments.report.blocks import DataTable, Figure, Section

    frame = _frame(results)
    frame["score"] = frame["test"].where(frame["test"].notna(), frame["dev"]) if "test" in frame else frame["dev"]
    which = "test" if frame["test"].notna().all() else "dev"
    metric = str(frame["metric"].iloc[0])
    scores = _lines(frame, "score", 100.0)
    seconds = _lines(frame, "train_seconds")
    rows = []
    for (method, layer), own in frame.groupby(["method", "layer"], sort=False):
        spread = own["score"].std() if len(own) > 1 else None
        rows.append(
            (
                str(method),
                str(layer),
                f"{100 * own['score'].mean():.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}"),
                f"{own['train_seconds'].mean():.1f}",
                str(len(own)),
            )
        )
    best = "; ".join(f"{method}: layer {line.idxmax():g} ({line.max():.1f} %)" for method, line in scores.items())
    headers = ("Method", "Prompt layer", f"{which} {metric}, %", "Training, s", "Seeds")
    filled = frame["fill_seconds"].sum()
    note = (
        f"Best: {best}. Means over seeds, ± standard deviation. All layers read trunk states that took {filled:.1f} s "
        "to compute; training time does not hold them."
    )
    if which == "dev":
        note += " The dev rows also chose each run's weights, so that all scores are a little too high."
    y = f"{which} {metric}, %"
    return [
        Section(
            "score",
            "Score by prompt layer",
            [
                Figure(f"{y}, by the layer after which the prompt enters.", _chart("score by layer", y, scores, ".1f")),
                Figure("Seconds of training.", _chart("seconds by layer", "training, s", seconds)),
            ],
        ),
        Section(
            "runs", "All layers", [DataTable("Score and time by prompt layer", headers, rows, "numbers"), _note(note)]
        ),
    ]


def _influence(results: Sequence[Mapping[str, Any]]) -> list[Section]:
    import pandas as pd

    from lateprompt.experiments.report.blocks import DataTable, Figure, Section

    flat = pd.json_normalize(list(results)).sort_values(["method", "layer", "seed"])
    methods = list(dict.fromkeys(flat["method"]))

    def lines(columns: Mapping[str, str], factor: float = 1.0) -> dict[str, pd.Series]:
        found = {}
        for method in methods:
            for name, column in columns.items():
                title = name if len(methods) == 1 else f"{method}, {name}"
                found[title] = factor * flat[flat["method"] == method].groupby("layer")[column].mean()
        return found

    gradients = lines({"at the start": "gradient.initial.relative", "trained": "gradient.trained.relative"})
    plain = lines({"at the start": "gradient.initial.norm", "trained": "gradient.trained.norm"})
    moved = lines({"removed": "removed.kl_bits", "permuted": "permuted.kl_bits"})
    accuracies = lines(
        {"with its prompt": "accuracy", "another's prompt": "permuted.accuracy", "without": "removed.accuracy"}, 100.0
    )
    columns = {
        "dev, %": ("accuracy", 100, ".1f"),
        "Gradient, start": ("gradient.initial.norm", 1, ".3g"),
        "trained": ("gradient.trained.norm", 1, ".3g"),
        "State norm": ("gradient.initial.state_norm", 1, ".3g"),
        "Removed, bits": ("removed.kl_bits", 1, ".3f"),
        "flipped, %": ("removed.flipped", 100, ".1f"),
        "Permuted, bits": ("permuted.kl_bits", 1, ".3f"),
        "flipped, % ": ("permuted.flipped", 100, ".1f"),
    }
    rows = [
        (
            str(method),
            str(layer),
            *(f"{factor * own[column].mean():{form}}" for column, factor, form in columns.values()),
        )
        for (method, layer), own in flat.groupby(["method", "layer"], sort=False)
    ]
    return [
        *_layers(results),  # each run has been trained, and scored, as there
        Section(
            "gradient",
            "Propagation: the gradient that reaches the prompt",
            [
                Figure(
                    "Change of the loss for a change of the prompt as large as a text's state, by prompt layer.",
                    _chart("relative gradient by layer", "gradient × state norm, nats", gradients),
                ),
                Figure(
                    "The gradient's own norm. States grow with the layers, so it shrinks by their scale alone.",
                    _chart("gradient by layer", "norm of the gradient", plain),
                ),
            ],
        ),
        Section(
            "influence",
            "Influence: how far the prompt moves the output",
            [
                Figure(
                    "Divergence of the label probabilities when the trained prompt is removed, and when each row gets "
                    "another row's.",
                    _chart("influence by layer", "divergence, bits", moved),
                ),
                Figure(
                    "Accuracy on the dev rows with the row's own prompt, another row's, and none.",
                    _chart("accuracy by layer", "accuracy, %", accuracies, ".1f"),
                ),
                DataTable("By prompt layer", ("Method", "Layer", *map(str.strip, columns)), rows, "numbers"),
                _note(
                    "Gradients are those of the loss of dev rows, without dropout. Removing leaves what else was "
                    "trained (head, tuner); of a read-only prompt it leaves the state that it starts from. The dev "
                    "rows chose the weights."
                ),
            ],
        ),
    ]


def _information(results: Sequence[Mapping[str, Any]]) -> list[Section]:
    from lateprompt.experiments.report.blocks import DataTable, Figure, Section

    frame = _frame(results)
    frame["series"] = [
        f"frozen, {row.pooling}"
        if row.states == "frozen"
        else f"{row.method} after {row.prompt_layer:g}, {row.pooling}"
        for row in frame.itertuples()
    ]
    bits = _lines(frame, "bits", by="series")
    accuracy = _lines(frame, "accuracy", 100.0, by="series")
    entropy, majority = frame["label_entropy"].mean(), 100 * frame["majority"].mean()
    rows = [
        (
            str(series),
            str(layer),
            f"{own['bits'].mean():.2f} ± {own['standard_error'].mean():.2f}",
            f"{own['conditional_entropy'].mean():.2f}",
            f"{100 * own['accuracy'].mean():.1f}",
            str(len(own)),
        )
        for (series, layer), own in frame.groupby(["series", "layer"], sort=False)
    ]
    note = (
        f"Usable information of regularised logistic regression (Xu et al., 2020), measured on "
        f"{int(frame['heldout_rows'].min()):,} dev rows: between 0 and the label's own {entropy:.2f} bits; the "
        "standard error is that of the dev rows, the mean over seeds. An estimate below 0 means that the probe did "
        "worse than the labels' shares. Layer 0 is the embeddings; the last layer's states are behind the final norm."
    )
    return [
        Section(
            "bits",
            "Usable information",
            [
                Figure(
                    f"Usable bits about the label (which has {entropy:.2f}), by the number of layers below the states.",
                    _chart("usable bits by layer", "usable information, bits", bits, ".2f", "layer"),
                ),
                Figure(
                    f"The probe's accuracy; guessing the most frequent label scores {majority:.1f} %.",
                    _chart("probe accuracy by layer", "probe accuracy, %", accuracy, ".1f", "layer"),
                ),
                DataTable(
                    "By layer",
                    ("States", "Layer", "Bits ± s. e.", "H(Y|X), bits", "Accuracy, %", "Seeds"),
                    rows,
                    "numbers",
                ),
                _note(note),
            ],
        )
    ]


# -- their parts -----------------------------------------------------------------------------------------------------


def _frame(results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(list(results)).sort_values(["layer", "seed"], kind="stable")


def _lines(frame: pd.DataFrame, column: str, factor: float = 1.0, *, by: str = "method") -> dict[str, pd.Series]:
    """Mean over the seeds by layer, for each method."""
    found = frame.groupby([by, "layer"], sort=False)[column].mean() * factor
    return {str(name): found[name].sort_index() for name in dict.fromkeys(frame[by])}


def _chart(
    name: str, y_label: str, lines: Mapping[str, pd.Series], digits: str = ".3g", x_label: str = "prompt layer"
) -> Chart:
    from lateprompt.experiments.report.figures import line_chart

    numbers = {line: number for number, line in enumerate(lines)}
    return line_chart(
        lines,
        numbers,
        name=name,
        title=f"{y_label}, by {x_label}",
        x_label=x_label,
        y_label=y_label,
        by_layer=True,
        digits=digits,
        width=640,
        height=330,
    )


def _note(text: str) -> Any:
    from lateprompt.experiments.report.blocks import Note

    return Note(text)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
