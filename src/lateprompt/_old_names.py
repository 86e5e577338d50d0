"""Module names of earlier releases: `lateprompt.reference` is `lateprompt.interop.authors_checkpoint` today.

Importing an old name gives today's module itself, so that a class has one identity however it was imported. A name that
begins with an old one and goes on (`lateprompt.states.store`) is today's module of that package.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

OLD_NAMES = {
    "absorb": "backbone.kernels.absorbed_attention",
    "adapter_files": "peft_method.adapter_files",
    "arguments": "cli.arguments",
    "bench": "experiments.bench",
    "bench_cli": "cli.bench",
    "beneath": "peft_method.tail_tuner",
    "branches": "backbone.packed",
    "cache": "backbone.kv_cache",
    "calls": "backbone.call_context",
    "checks": "utils.validation",
    "classifier": "predictors.classifier",
    "compare": "experiments.compare",
    "compare_cli": "cli.compare",
    "config": "peft_method.config",
    "config_files": "cli.config_files",
    "detours": "peft_method.input_prompts",
    "dropout": "backbone.kernels.cpu_dropout",
    "errors": "utils.errors",
    "estimator_files": "estimator.files",
    "evaluate_cli": "cli.evaluate",
    "families": "backbone.families",
    "figures": "cli.figures",
    "files": "utils.files",
    "fingerprints": "predictors.fingerprints",
    "finished": "runs.finished",
    "generation": "peft_method.generate",
    "generators": "prompts",
    "given": "estimator.inputs",
    "halves": "backbone.kernels.half_matmul",
    "inputs": "utils.inputs",
    "interruption": "cli.interruption",
    "jobs": "experiments.end_to_end",
    "layer": "peft_method.layer",
    "lean": "backbone.kernels.read_positions",
    "mixed": "backbone.multi_adapter",
    "model_card": "runs.model_card",
    "names": "utils.names",
    "outcome": "cli.outcome",
    "outputs": "predictors.outputs",
    "padding": "data.padding",
    "parser": "cli.parser",
    "plain": "estimator.plain",
    "predict_cli": "cli.predict",
    "predicting": "predictors.predicting",
    "pretrained": "predictors.loading",
    "progress": "utils.console",
    "randomness": "utils.randomness",
    "readout": "readouts",
    "reference": "interop.authors_checkpoint",
    "registration": "peft_method.registry",
    "release": "predictors.offload",
    "report": "experiments.report",
    "rivals": "experiments.baselines",
    "row_checks": "data.row_checks",
    "run": "runs.train",
    "run_files": "run_folder.entries",
    "run_rows": "runs.data",
    "saved_run": "predictors.saved_run",
    "sizes": "peft_method.sizes",
    "split": "backbone.split",
    "states": "state_cache",
    "states.manage": "state_cache.admin",
    "states.segments": "state_cache.segment",
    "states_cli": "cli.states",
    "suggestions": "utils.suggestions",
    "tasks": "data",
    "tasks.characters": "data.characters",
    "tasks.json_rows": "data.formats.json_lines",
    "tasks.lines": "data.formats.lines",
    "tasks.loading": "data.task_library",
    "tasks.readers": "data.rows",
    "tasks.separated": "data.formats.separated",
    "tasks.sheets": "data.formats.sheets",
    "tasks.tables": "data.formats.tables",
    "tasks.targets": "data.target_encoding",
    "tasks.text_task": "data.generation_task",
    "tasks.words": "data.label_words",
    "tasks_cli": "cli.tasks",
    "train_cli": "cli.train",
    "training.feed": "data.batches",
    "training.fit": "training.loop",
    "training.kept": "state_cache.fill",
    "training.parallel": "training.distributed",
    "training.phrases": "state_cache.label_words",
    "training.states_settings": "state_cache.settings",
    "training_folder": "runs.training_folder",
    "tuned": "predictors.base",
    "tuner": "peft_method.model",
    "tuners": "peft_method.extra",
    "tuners.adapter": "peft_method.extra.houlsby",
    "visibility": "backbone.masks",
    "vocabulary": "data.vocabulary",
    "weights": "predictors.weights",
    "writer": "predictors.text_generator",
    "yaml_files": "utils.yaml_files",
}
"""Old name to today's, both without the leading `lateprompt.`."""
_PACKAGE = "lateprompt."


def todays_name(name: str) -> str | None:
    """Today's full name of an old module's full name; None if it is not an old one.

    Example:
        >>> todays_name("lateprompt.states.store")
        'lateprompt.state_cache.store'
    """
    parts = name.removeprefix(_PACKAGE).split(".")
    for end in range(len(parts), 0, -1):
        found = OLD_NAMES.get(".".join(parts[:end]))
        if found is not None:
            return ".".join([_PACKAGE + found, *parts[end:]])
    return None


class _OldNames(MetaPathFinder, Loader):
    """Finds old names, and puts today's module in the place of the one that the import system has made for it."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(_PACKAGE) or todays_name(fullname) is None:
            return None
        return ModuleSpec(fullname, self)

    def exec_module(self, module: ModuleType) -> None:
        new = todays_name(module.__name__)
        assert new is not None
        try:
            sys.modules[module.__name__] = importlib.import_module(new)
        except ModuleNotFoundError as error:
            if error.name != new:
                raise
            raise ModuleNotFoundError(f"No module named {module.__name__!r}", name=module.__name__) from None


def install() -> None:
    """Make the old names importable; before all other finders, which would load a module of a package twice."""
    if not any(isinstance(finder, _OldNames) for finder in sys.meta_path):
        sys.meta_path.insert(0, _OldNames())
