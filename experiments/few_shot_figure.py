"""Draw the README's picture from the results of a comparison: each method's mean test score over its tasks.

python experiments/few_shot_figure.py experiments/results/small-few-shot docs/figures/few-shot.svg
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lateprompt.methods import parse_method, title_of
from lateprompt.prompts import GENERATORS

KINDS = {
    "late prompt": "#0072b2",
    "tunes the upper layers alone": "#009e73",
    "all layers, or the input": "#8a8f98",
}


def kind_of(method: str) -> str:
    """Whether a method is a late prompt, keeps to the layers above p, or neither."""
    if any(part in GENERATORS for part in method.split("+")):
        return "late prompt"
    late = all(part.late for part in parse_method(method)) and method != "head"
    return "tunes the upper layers alone" if late else "all layers, or the input"


def main(results: Path, output: Path) -> None:
    """Read `results.csv`, write the picture."""
    rows = pd.read_csv(results / "results.csv").replace({"method": {"prompt tuning 20": "prompt-tuning"}})
    by_seed = rows[rows.status == "done"].groupby(["method", "seed"]).test.mean()
    scores = by_seed.groupby("method").agg(["mean", "std"]).sort_values("mean") * 100
    places = range(len(scores))
    colours = [KINDS[kind_of(method)] for method in scores.index]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "lateprompt", "font.size": 10}):
        figure = Figure(figsize=(8, 5.4), facecolor="white", layout="constrained")
        axes = figure.add_subplot(
            xlabel="mean test score of five tasks, %, with one standard deviation over three seeds"
        )
        axes.hlines(places, scores["mean"] - scores["std"], scores["mean"] + scores["std"], colours, linewidth=2)
        axes.scatter(scores["mean"], places, s=42, c=colours, zorder=3)
        axes.set_yticks(places, [title_of(method) for method in scores.index])
        axes.grid(axis="x", color="#e3e5e8")
        axes.set_axisbelow(True)
        axes.spines[["left", "right", "top"]].set_visible(False)
        axes.tick_params(length=0)
        keys = [Line2D([], [], color=colour, marker="o", label=kind) for kind, colour in KINDS.items()]
        axes.legend(handles=keys, loc="lower right", frameon=False)
        axes.set_title("MiniLM-L6, 100 training rows: sst2, subj, trec, mrpc, rte", loc="left", fontsize=10.5)
        figure.savefig(output, metadata={"Date": None, "Creator": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
